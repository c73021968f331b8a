"""Asks a language model for the subclasses of every class: `ofaseg subclasses generate`."""

import argparse
import functools
import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from ofaseg.commands import common
from ofaseg.subclasses.answer_log import AnswerLog
from ofaseg.subclasses.generate import Estimate, Generated, Generator, Settings
from ofaseg.subclasses.label_set import LabelSet, load_label_set
from ofaseg.subclasses.openai_provider import OpenAIProvider
from ofaseg.subclasses.providers import FileProvider, Provider, TransformersProvider
from ofaseg.subclasses.template import DEFAULT_EXAMPLES, DEFAULT_TEMPLATE, PromptTemplate, read_template
from ofaseg.vocabulary import parse_class_names

MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--class-names", required=True, help="class names: a file with one per line, or a comma-separated list")
    add("--out", required=True, help="the label set to write")
    add(
        "--provider",
        choices=("openai", "transformers", "file"),
        default="openai",
        help="who answers (default: an OpenAI-compatible endpoint)",
    )
    add("--model", required=True, help="name of the model at the endpoint; or the model's folder; or the JSON file of answers")
    add("--base-url", default="", help="address of the endpoint, such as http://localhost:8000/v1 (default: $OPENAI_BASE_URL, or OpenAI)")
    add("--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable that holds the key of the endpoint")
    add(
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="parameter of the request, such as temperature=0.7; null drops one",
    )
    add("--max-tokens", type=int, default=1024, help="tokens of an answer at most")
    add("--temperature", type=float, default=0.0, help="0 for the likeliest words")
    add("--timeout", type=float, default=120.0, help="seconds for a whole answer")
    add("--dataset", default="everyday photos", help="what the photos are, in words; decides the sense of ambiguous class names")
    add("--num", type=int, default=10, metavar="M", help="names to ask for per class (default: 10)")
    add("--min-num", type=int, default=3, help="an answer with fewer usable names is asked for again (default: 3)")
    add("--template", default="", help="own prompt: a text file with {class}, and {dataset}, {m}, {examples} where wanted")
    add("--examples", default="", help="few-shot examples: a label set (default: three built-in ones)")
    add("--answers", default="", help="file of all raw answers, which later runs go on from (default: beside --out, .answers.jsonl)")
    add("--attempts", type=int, default=3, help="answers asked for until one is usable")
    add("--retries", type=int, default=5, help="repetitions of a request that fails: busy server, time-out, broken connection")
    add("--requests-per-minute", type=float, default=0.0, help="rate limit (default: none)")
    add("--price-in", type=float, default=0.0, help="price of a million prompt tokens, for the estimate")
    add("--price-out", type=float, default=0.0, help="price of a million answer tokens, for the estimate")
    add("--estimate", action="store_true", help="tell what a run would ask and cost, and ask nothing")
    add("--fill-missing", action="store_true", help="write the set although classes have no answer; these get their own name")
    add("--device", default="", help="of a model folder: cpu, cuda, cuda:1 ... (default: a GPU when there is one)")
    add("--debug", action="store_true", help="show the full traceback of an error")


def run(args) -> int:
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "openai"):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)  # a line per request would tear the progress bar
    class_names = parse_class_names(args.class_names)
    examples = load_label_set(args.examples) if args.examples else DEFAULT_EXAMPLES
    template = PromptTemplate(read_template(args.template) if args.template else DEFAULT_TEMPLATE, examples, args.dataset)
    provider = _provider(args)
    settings = Settings(
        wanted=args.num,
        minimum=min(args.min_num, args.num),
        attempts=1 if args.provider == "file" else args.attempts,  # a file never answers anything else
        retries=args.retries,
        requests_per_minute=args.requests_per_minute,
    )
    answers = Path(args.answers) if args.answers else Path(args.out).with_suffix(".answers.jsonl")
    with AnswerLog(answers) as log:
        generator = Generator(class_names, provider, template, log, settings)
        print(_told(generator.estimate(), args), flush=True)
        if args.estimate:
            return 0
        try:
            result = generator.run(functools.partial(tqdm, unit="class", disable=None))
        except KeyboardInterrupt:
            print(f"stopped; all answers so far are in {answers}, and the same command goes on from there")
            return 130
    return _finish(args, class_names, result, _about(provider, template, settings), answers)


def _provider(args) -> Provider:
    if args.provider == "file":
        return FileProvider(args.model)
    if args.provider == "transformers":
        return TransformersProvider(args.model, args.max_tokens, args.temperature, common.choose_device(args.device))
    parameters = {"max_tokens": args.max_tokens, "temperature": args.temperature, **_parameters(args.parameter)}
    return OpenAIProvider(args.model, args.base_url, args.key_variable, parameters, args.timeout)


def _parameters(pairs: list[str]) -> dict:
    """['seed=1', 'max_tokens=null'] -> {'seed': 1, 'max_tokens': None}; values are JSON, or else words."""
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--parameter {pair!r}: write KEY=VALUE")
        try:
            found[key.strip()] = json.loads(text)
        except ValueError:
            found[key.strip()] = text.strip()
    return found


def _told(estimate: Estimate, args) -> str:
    known = f" ({estimate.answered} more are answered already)" if estimate.answered else ""
    text = f"{estimate.requests} classes to ask for{known}: about {estimate.tokens_in:,} tokens in, {estimate.tokens_out:,} out"
    if args.price_in or args.price_out:
        text += f", cost about {estimate.cost(args.price_in, args.price_out):.4f}"
    return text + f", about {max(1, round(estimate.seconds / 60))} min"


def _about(provider: Provider, template: PromptTemplate, settings: Settings) -> dict:
    asked = {
        "prompt": template.text,
        "dataset": template.dataset,
        "examples": {name: list(names) for name, names in template.examples.items()},
    }
    date = datetime.now(UTC).date().isoformat()
    return {"made_by": "ofaseg subclasses generate", "date": date, **provider.identity(), **asked, "wanted": settings.wanted}


def _finish(args, class_names, result: Generated, about: dict, answers: Path) -> int:
    for class_name, reasons in result.dropped.items():
        print(f"{class_name}: left out {'; '.join(reasons[:5])}" + (f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""))
    if result.stopped:
        print(f"stopped early: {result.stopped}")
    else:
        show("no answer", [f"{name}: {reason}" for name, reason in result.failures.items()])
    counts = f"{len(result.names)} of {len(class_names)} classes have subclasses ({result.asked} requests, {result.reused} from before)"
    if result.failures and not (args.fill_missing and result.names):
        print(
            f"{counts}; {args.out} is not written. The same command asks for the other {len(result.failures)} only: {answers} has the rest"
        )
        return 1
    names = {name: result.names.get(name, (name,)) for name in class_names}
    LabelSet(names, about | ({"filled_with_class_name": list(result.failures)} if result.failures else {})).save(args.out)
    print(f"{counts}; written: {args.out}; raw answers: {answers}")
    return 1 if result.failures else 0


def show(title: str, lines: list[str]) -> None:
    """Prints a few lines, and how many more there are."""
    for line in lines[:MAX_SHOWN]:
        print(f"{title}: {line}")
    if len(lines) > MAX_SHOWN:
        print(f"{title}: and {len(lines) - MAX_SHOWN} more")
