"""Writing one split: plan, workers, exchange, summary. What `prepare` does after its command line."""

import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data_prep import engine
from data_prep.contact_sheet import sheet_path, write_contact_sheet
from data_prep.shard_work import ShardPlan, files_state, repeated_id
from data_prep.source import Source, SourceError
from data_prep.statistics import Statistics
from data_prep.summary import read_summary, summarize, summary_path, write_summary
from data_prep.working_folder import FinishedShard, WorkingFolder, combined_state, describe_plan, folder_of
from ofaseg.atomic import remove_leftovers
from ofaseg.data.exchange import SplitExchange, content_hash, disk_errors
from ofaseg.data.folder import described_split, read_description, splits_being_written

logger = logging.getLogger(__name__)

ENGINES = ("local", "ray")
_MOST_ROWS, _FEWEST_ROWS, _SHARDS = 5000, 64, 32


@dataclass
class WriteOptions:
    """How a split is written; what it holds depends on `format`, `rows_per_shard`, `skip_bad` and `dataset_options`.

    Attributes:
        format: "tsv" or "parquet".
        rows_per_shard: samples per file, at least 1; None chooses by the length of the source.
        skip_bad: leave bad samples out instead of raising.
        workers: processes, at least 1.
        engine: "local" for the cores of this machine, "ray" for a Ray cluster that shares the folders.
        resume: go on with an unfinished run, and keep a split that is complete.
        dataset_options: the options of the dataset, for telling another run from this one.
    """

    format: str = "parquet"
    rows_per_shard: Optional[int] = None
    skip_bad: bool = False
    workers: int = field(default_factory=engine.usable_cores)
    engine: str = "local"
    resume: bool = False
    dataset_options: dict = field(default_factory=dict)


def default_rows_per_shard(samples: int) -> int:
    """64 to 5000 samples per file: files enough to share among many workers, and few enough to handle."""
    return min(_MOST_ROWS, max(_FEWEST_ROWS, -(-samples // _SHARDS)))


def write_split(source: Source, out, split: str, options: WriteOptions) -> dict:
    """Writes one split of a dataset as shards, with its summary and contact sheet.

    When it fails or is killed, the finished shards stay in a hidden folder, and `options.resume` goes on from there.

    Returns:
        the summary, see `summary.summarize`; also seconds, content_hash, and plan and raw_state, by which a later run knows
        that it would write the same.

    Raises:
        BadSampleError: a bad sample.
        SourceError: the source has no sample, or only bad ones.
        ShardError: the shards cannot be written, or two samples have one id.
    """
    start = time.monotonic()
    if not len(source):
        raise SourceError(f"split {split!r} has no sample; check that the source is complete")
    exchange = SplitExchange(out, split, source.vocabulary, source.columns, options.format)
    rows_per_shard = options.rows_per_shard or default_rows_per_shard(len(source))
    plan = ShardPlan(source, folder_of(out, split), exchange.columns, options.format, rows_per_shard, options.skip_bad)
    description = describe_plan(plan, options.dataset_options)
    plan_hash = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    with WorkingFolder(plan, description, options.resume) as folder:
        if options.resume and (complete := _complete_summary(out, split, plan, plan_hash)):
            logger.info("%s: complete, kept as it is", split)
            folder.remove()
            return complete
        shards = folder.finished()
        if shards is None or not exchange.holds([shard.digests for shard in shards if shard.digests]):
            _write_pending(plan, folder, split, options)
            shards = folder.finished()
            if not any(shard.ids for shard in shards):
                folder.remove()
                raise _all_bad(shards, split)
            _check_ids(plan, shards)
            exchange.commit([shard for shard in shards if shard.digests])
        summary = _summary(plan, shards, split)
        raw_state = combined_state([shard.files_state for shard in shards])
        summary |= {"seconds": round(time.monotonic() - start, 3), "plan": plan_hash, "raw_state": raw_state}
        with disk_errors(out):
            write_contact_sheet(out, split, source.vocabulary)
            write_summary(out, summary)
            for path in (sheet_path(out, split), summary_path(out, split)):
                remove_leftovers(path)
            folder.remove()
    return summary


def _complete_summary(out, split: str, plan: ShardPlan, plan_hash: str) -> Optional[dict]:
    """The summary of a split that an earlier run completed by the same plan from the same raw files, if there is one."""
    summary = read_summary(out, split)
    if summary is None or summary.get("plan") != plan_hash:
        return None
    description = read_description(out) or {}
    stored = described_split(out, description, split)
    whole = stored.get("content_hash") == summary.get("content_hash") and split not in splits_being_written(out, description)
    present = all((Path(out) / file["name"]).is_file() for file in stored.get("files", [{"name": ""}]))
    states = [files_state(plan, number) for number in range(plan.num_shards)]
    return summary if whole and present and combined_state(states) == summary.get("raw_state") else None


def _write_pending(plan: ShardPlan, folder: WorkingFolder, split: str, options: WriteOptions) -> None:
    """Writes the shards that are not finished, under a progress bar, and logs the samples left out."""
    with disk_errors(folder.path):
        pending = folder.pending()
    left = sum(len(plan.samples(number)) for number in pending)

    def done(number: int) -> None:
        for entry in folder.shard(number).skipped:
            logger.warning("skipped: %s", entry["reason"])

    if options.engine == "ray":
        from data_prep import engine_ray as engine_used
    else:
        engine_used = engine
    total = len(plan.source)
    with logging_redirect_tqdm(), tqdm(total=total, initial=total - left, desc=split, unit="row", smoothing=0.05) as bar:
        engine_used.write_shards(plan, pending, options.workers, bar.update, done)


def _all_bad(shards: list[FinishedShard], split: str) -> SourceError:
    reasons = [entry["reason"] for shard in shards for entry in shard.skipped]
    return SourceError(f"all {len(reasons)} samples of split {split!r} are bad, the first one: {reasons[0]}")


def _check_ids(plan: ShardPlan, shards: list[FinishedShard]) -> None:
    """Raises ShardError when two samples have one id."""
    seen: dict[str, int] = {}
    for shard in shards:
        for name, sample in zip(shard.ids, shard.samples):
            if name in seen:
                raise repeated_id(name, plan.source.name(seen[name]), plan.source.name(sample))
            seen[name] = sample


def _summary(plan: ShardPlan, shards: list[FinishedShard], split: str) -> dict:
    statistics = Statistics(len(plan.source.vocabulary or ()))
    for shard in shards:
        statistics.merge(shard.statistics)
    skipped = [entry for shard in shards for entry in shard.skipped]
    summary = summarize(split, statistics, plan.source.vocabulary, skipped, [shard.bytes for shard in shards if shard.bytes])
    digests = [digest for shard in shards for digest in shard.digests]
    return summary | {"content_hash": content_hash(digests)}
