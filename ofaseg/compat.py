"""Patches that let fairseq 0.12.3 train on current torch, and on machines without a GPU.

``apply()`` is the first thing ``import ofaseg`` does. Each patch has an id, is put in place only where its own test says
that the installed fairseq and torch need it, and can be switched off: ``OFASEG_NO_COMPAT=1`` switches all off,
``OFASEG_NO_COMPAT=P1b,P4`` only those.

===== ============================================================ ====================================================
id    what is replaced                                             what fails without
===== ============================================================ ====================================================
P5    ``warnings`` filters                                         a page of warnings about fairseq's own code
P1a   safe globals of ``torch.load``                               resuming checkpoints with a Namespace or numpy scalars
P1b   ``fairseq.distributed.utils._broadcast_object_slow``         resuming on more than one process
P2a   ``fairseq.distributed.utils.infer_init_method``              torchrun without a GPU (divides by the GPU count)
P2b   ``fairseq.distributed.utils.call_main``                      ``--distributed-world-size 2`` without a GPU
P2c   ``DistributedDataParallel`` as fairseq uses it               DDP of a model on the CPU (``device_ids`` given)
P2d   ``fairseq.distributed.utils.all_gather_list``                metrics that cannot be summed, without a GPU
P3    ``fairseq.options.parse_args_and_arch``                      ``--bf16`` (turns the TPU mode on)
P4    ``fairseq.models.ema.ema.EMA.__init__``                      ``--store-ema`` with integer buffers (BatchNorm)
P6    ``fairseq.trainer.Trainer.get_train_iterator``               schedules that need the number of updates per epoch
P7    the root logger while fairseq is imported                    every library logs at DEBUG level to the terminal
P8    ``fairseq.trainer.Trainer.load_checkpoint``                  a task's own check of the run it resumes (its classes)
P9    imports of scikit-learn, SciPy and wandb by fairseq          nothing; every command starts two seconds later
P10   ``fairseq.data.data_utils._find_extra_valid_paths``          validation on data that are files, or several by commas
P11   ``sys.excepthook`` of ``fairseq-train`` and ``-validate``    nothing; frames of fairseq stand before a user's error
P12   ``fairseq.file_io.PathManager.copy``                         resuming a run that was killed while it copied a checkpoint
P13   ``fairseq.data.iterators.BackgroundConsumer``                now and then, the end of a run that leaves batches unread
===== ============================================================ ====================================================

Files are always read with ``weights_only=True``. P1b alone unpickles freely: its bytes come from rank 0 of the same job
over the process group, never from a file.
"""

import atexit
import functools
import importlib
import inspect
import io
import logging
import os
import pickle
import socket
import sys
import threading
import time
import traceback
import warnings
import weakref
from argparse import Namespace

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ofaseg.stand_ins import LateImports

logger = logging.getLogger(__name__)

SWITCH = "OFASEG_NO_COMPAT"
PACKAGE_DIR = os.path.dirname(os.path.abspath(__file__))
OUR_PACKAGES = ("ofaseg", "user_tasks", "criterions", "data_prep")
REFUSALS = (ValueError, OSError, ImportError)
SET_UP = {"setup_task", "build_model", "build_criterion", "load_dataset", "batch_by_size"}
LONGEST_WAIT = 30.0
"""Seconds that the end of a process waits for batches that are being read."""
LAUNCHER_KEYS = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")

# message patterns of warnings about code that is not ours and that no user of the toolkit can act on
QUIET = (
    (r"hydra\.experimental", None),
    (r"\s*The version_base parameter is not specified", None),
    (r"\s*In '.*': Usage of deprecated keyword in package header", None),
    (r"\s*'.*' is validated against ConfigStore schema with the same name", None),
    (r"\s*The strict flag in the compose API", None),
    (r"`torch\.jit\.script` is deprecated", None),
    (r"`torch\.cuda\.amp\.", FutureWarning),
    (r"'pin_memory' argument is set as true but no accelerator is found", None),
    (r"`broadcast_buffers` is deprecated", FutureWarning),
)

# modules of fairseq -> large packages that they import at once and hardly any run uses
SELDOM_USED = {
    "fairseq.criterions.sentence_prediction": ("scipy", "scipy.stats", "sklearn", "sklearn.metrics"),
    "fairseq.tasks.audio_classification": ("sklearn", "sklearn.metrics"),
    "fairseq.logging.progress_bar": ("wandb",),
}

_in_place: list = []  # ids of the patches that were put in place


# --------------------------------------------------------------------------------------- P5, P9, P7, P1a: on import


def _quiet_warnings() -> bool:
    for message, category in QUIET:
        warnings.filterwarnings("ignore", message=message, category=category or Warning)
    return True


def _import_large_packages_late() -> bool:
    if "fairseq" in sys.modules:
        return False
    sys.meta_path.insert(0, LateImports(SELDOM_USED))
    return True


def _keep_root_logger() -> bool:
    """fairseq's models call ``logging.basicConfig(level=DEBUG)`` on import, and its tasks advertise packages.

    Under ``fairseq-train`` fairseq is there before the plug-in and has set up its log itself: nothing to do.
    """
    if "fairseq" in sys.modules:
        return False
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.INFO)
    try:
        importlib.import_module("fairseq")
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
    return True


def _allow_plain_objects() -> bool:
    """Old fairseq checkpoints hold an ``argparse.Namespace``, and the saved meters may hold numpy scalars."""
    if not hasattr(torch.serialization, "add_safe_globals"):
        return False
    scalar, reconstruct = np._core.multiarray.scalar, np._core.multiarray._reconstruct
    dtypes = [kind for name, kind in vars(np.dtypes).items() if isinstance(kind, type) and name.endswith("DType")]
    # the second names are the ones that numpy 1 wrote
    renamed = [(scalar, "numpy.core.multiarray.scalar"), (reconstruct, "numpy.core.multiarray._reconstruct")]
    torch.serialization.add_safe_globals([Namespace, np.dtype, np.ndarray, scalar, reconstruct, *renamed, *dtypes])
    return True


# -------------------------------------------------------------------------------------------------- P1b: broadcasts


def _load_refuses_objects() -> bool:
    buffer = io.BytesIO()
    torch.save(UnknownObject(), buffer)
    buffer.seek(0)
    try:
        torch.load(buffer)
    except pickle.UnpicklingError:
        return True
    return False


class UnknownObject:
    """An object that a restricted ``torch.load`` does not know."""


def _broadcast_any_object() -> bool:
    from fairseq.distributed import utils

    if not _load_refuses_objects():
        return False

    def broadcast_object_slow(obj, src_rank, group, dist_device):
        """Send ``obj`` from ``src_rank`` to every other rank of ``group`` as bytes: length first, then content."""
        if utils.get_rank(group) == src_rank:
            buffer = io.BytesIO()
            torch.save(obj, buffer)
            content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).to(dist_device)
            utils.broadcast(torch.tensor([len(content)]).to(dist_device), src=src_rank, group=group)
            utils.broadcast(content, src=src_rank, group=group)
            return obj
        length = torch.tensor([0]).to(dist_device)
        utils.broadcast(length, src=src_rank, group=group)
        content = torch.empty(int(length.item()), dtype=torch.uint8, device=dist_device)
        utils.broadcast(content, src=src_rank, group=group)
        # a configuration object is inside, and the sender is a process of this job: no restriction needed
        return torch.load(io.BytesIO(content.cpu().numpy().tobytes()), map_location="cpu", weights_only=False)

    utils._broadcast_object_slow = broadcast_object_slow
    return True


# ------------------------------------------------------------------------------------- P2: processes without a GPU


def _has_gpu() -> bool:
    return torch.cuda.device_count() > 0


def _infer_cpu_init(cfg) -> None:
    """Fill in the distributed options of a CPU job: from the launcher's environment, or for children of this process.

    SLURM's variables are not read: on a machine without a GPU they usually only say that the shell is part of a job.
    """
    world_size = int(os.environ["WORLD_SIZE"]) if all(key in os.environ for key in LAUNCHER_KEYS) else 1
    if world_size > 1:
        if cfg.distributed_world_size not in (1, world_size):
            logger.warning("the launcher started %d processes: --distributed-world-size is ignored", world_size)
        cfg.distributed_init_method = "env://"
        cfg.distributed_world_size = world_size
        cfg.distributed_rank = int(os.environ["RANK"])
        cfg.device_id = int(os.environ.get("LOCAL_RANK", 0))
        cfg.distributed_no_spawn = True
    elif cfg.distributed_world_size > 1:
        if cfg.distributed_port <= 0:
            cfg.distributed_port = _free_port()
        cfg.distributed_init_method = f"tcp://localhost:{cfg.distributed_port}"
        cfg.distributed_num_procs = cfg.distributed_world_size
    else:
        return
    cfg.distributed_backend = "gloo"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _infer_without_gpu() -> bool:
    from fairseq.distributed import utils

    original = utils.infer_init_method

    @functools.wraps(original)
    def infer_init_method(cfg, force_distributed=False):
        if _has_gpu() or cfg.tpu or cfg.pipeline_model_parallel or cfg.distributed_init_method is not None:
            return original(cfg, force_distributed)
        return _infer_cpu_init(cfg)

    utils.infer_init_method = infer_init_method
    return True


def spawned_main(rank: int, main, cfg, kwargs: dict) -> None:
    """What a spawned process runs: plug-in first, so that it is patched like its parent, then fairseq's own part."""
    from fairseq.distributed import utils
    from fairseq.utils import import_user_module

    import_user_module(cfg.common)
    utils.distributed_main(rank, main, cfg, kwargs)


def _launch_without_gpu() -> bool:
    from fairseq.distributed import utils

    original = utils.call_main

    @functools.wraps(original)
    def call_main(cfg, main, **kwargs):
        if cfg.common.user_dir is None:
            cfg.common.user_dir = PACKAGE_DIR  # spawned processes import the plug-in through it
        launch = cfg.distributed_training
        if (_has_gpu() and not cfg.common.cpu) or cfg.common.tpu:
            return original(cfg, main, **kwargs)
        if launch.distributed_init_method is None:
            utils.infer_init_method(launch) if not _has_gpu() else _infer_cpu_init(launch)
        if launch.distributed_init_method is None or launch.distributed_no_spawn:
            return original(cfg, main, **kwargs)
        launch.distributed_backend = "gloo"
        kwargs["start_rank"] = launch.distributed_rank
        launch.distributed_rank = None  # each child takes start_rank + its own number
        torch.multiprocessing.spawn(spawned_main, args=(main, cfg, kwargs), nprocs=launch.distributed_world_size, join=True)

    utils.call_main = call_main
    return True


class AnyDeviceDataParallel(DistributedDataParallel):
    """DistributedDataParallel that drops ``device_ids`` where the module is on the CPU, as torch demands."""

    def __init__(self, module, device_ids=None, output_device=None, **kwargs):
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            device_ids = output_device = None
        super().__init__(module, device_ids=device_ids, output_device=output_device, **kwargs)


def _wrap_cpu_modules() -> bool:
    from fairseq.models import distributed_fairseq_model

    if distributed_fairseq_model.DistributedDataParallel is not DistributedDataParallel:
        return False
    distributed_fairseq_model.DistributedDataParallel = AnyDeviceDataParallel
    return True


def _gather_without_gpu() -> bool:
    from fairseq.distributed import utils
    from fairseq.utils import move_to_cpu

    original = utils.all_gather_list

    @functools.wraps(original)
    def all_gather_list(data, group=None, max_size=16384):
        group = utils.get_global_group() if group is None else group
        if _has_gpu() and dist.get_backend(group) == "nccl":
            return original(data, group, max_size)
        gathered = [None] * utils.get_world_size(group)
        dist.all_gather_object(gathered, move_to_cpu(data), group=group)
        return gathered

    utils.all_gather_list = all_gather_list
    return True


# --------------------------------------------------------------------------------------- P3, P4, P6: options, trainer


def _parse_bf16() -> bool:
    from fairseq import options
    from fairseq.distributed import utils

    if utils.xm is not None:  # torch_xla is installed: the TPU mode may be meant
        return False
    original = options.parse_args_and_arch

    @functools.wraps(original)
    def parse_args_and_arch(*args, **kwargs):
        parsed = original(*args, **kwargs)
        namespace = parsed[0] if isinstance(parsed, tuple) else parsed
        if getattr(namespace, "bf16", False):
            namespace.tpu = False
        return parsed

    options.parse_args_and_arch = parse_args_and_arch
    return True


def _ema_fails_on_integers(ema_class) -> bool:
    config = Namespace(ema_decay=0.5, ema_seed_model=None, ema_fp32=False, ema_update_freq=1, ema_start_update=0)
    module = torch.nn.Module()
    module.register_buffer("count", torch.tensor(1))
    try:
        ema_class(module, config).step(module)
    except RuntimeError:
        return True
    return False


def _copy_integer_buffers() -> bool:
    from fairseq.models.ema.ema import EMA

    if not _ema_fails_on_integers(EMA):
        return False
    original = EMA.__init__

    @functools.wraps(original)
    def init(self, model, config, device=None, skip_keys=None):
        integers = {name for name, value in model.state_dict().items() if torch.is_tensor(value) and not value.is_floating_point()}
        original(self, model, config, device=device, skip_keys=set(skip_keys or ()) | integers)

    EMA.__init__ = init
    return True


def _announce_epoch_length() -> bool:
    from fairseq.data.iterators import StreamingEpochBatchIterator
    from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY
    from fairseq.trainer import Trainer

    original = Trainer.get_train_iterator

    @functools.wraps(original)
    def get_train_iterator(self, *args, **kwargs):
        iterator = original(self, *args, **kwargs)
        schedule = LR_SCHEDULER_REGISTRY.get(getattr(self.cfg.lr_scheduler, "_name", None))
        # a stream has no length; asking any other schedule would build the optimizer before its time
        if hasattr(schedule, "set_batches_per_epoch") and not isinstance(iterator, StreamingEpochBatchIterator):
            self.lr_scheduler.set_batches_per_epoch(len(iterator))
        return iterator

    Trainer.get_train_iterator = get_train_iterator
    return True


def _resume_task_state() -> bool:
    from fairseq import checkpoint_utils
    from fairseq.distributed import utils as distributed_utils
    from fairseq.trainer import Trainer

    if "task.load_state_dict" in inspect.getsource(Trainer.load_checkpoint):
        return False
    original = Trainer.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(self, filename, reset_optimizer=False, *args, **kwargs):
        read, broadcast = checkpoint_utils.load_checkpoint_to_cpu, distributed_utils.broadcast_object

        def tell(state):
            if not reset_optimizer:  # else this is a new run from old weights
                self.task.load_state_dict(state.get("task_state") or {})
            return state

        @functools.wraps(read)
        def read_and_tell(*read_args, **read_kwargs):
            state = read(*read_args, **read_kwargs)
            alone = self.data_parallel_world_size == 1 or read_kwargs.get("load_on_all_ranks")
            return tell(state) if alone else state

        @functools.wraps(broadcast)
        def broadcast_and_tell(*broadcast_args, **broadcast_kwargs):
            value = broadcast(*broadcast_args, **broadcast_kwargs)
            return tell(value) if isinstance(value, dict) and "extra_state" in value else value

        # the trainer keeps the file's content to itself, so the task is told where every process gets hold of it: a
        # complaint of one process alone would leave the others waiting
        checkpoint_utils.load_checkpoint_to_cpu, distributed_utils.broadcast_object = read_and_tell, broadcast_and_tell
        try:
            return original(self, filename, reset_optimizer, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu, distributed_utils.broadcast_object = read, broadcast

    Trainer.load_checkpoint = load_checkpoint
    return True


def _look_for_subsets_in_folders() -> bool:
    """P10: fairseq looks for forgotten validation files in what ``data`` names, as if it were folders, separated by colons."""
    from fairseq.data import data_utils

    original = data_utils._find_extra_valid_paths
    try:
        original(__file__)
        return False
    except NotADirectoryError:
        pass

    def find_extra_valid_paths(dataset_path):
        places = [place for part in dataset_path.split(",") for place in part.split(os.pathsep) if os.path.isdir(place)]
        return set().union(*map(original, places))

    data_utils._find_extra_valid_paths = find_extra_valid_paths
    return True


def _tell_user_errors_in_a_line() -> bool:
    """P11: errors about files and options end a command of fairseq by their message.

    These are the toolkit's own kinds of errors, and what its tasks, models and criterions refuse while they are set up. All others keep
    their traceback, for they may be faults of the code.
    """
    if os.path.basename(sys.argv[0]) not in ("fairseq-train", "fairseq-validate"):
        return False
    original = sys.excepthook

    def hook(kind, error, trace):
        if kind.__module__.partition(".")[0] in OUR_PACKAGES or (issubclass(kind, REFUSALS) and _refused_in_set_up(trace)):
            print(f"error: {error}", file=sys.stderr)
        else:
            original(kind, error, trace)

    sys.excepthook = hook
    return True


def _refused_in_set_up(trace) -> bool:
    """Whether a `raise` of the toolkit ended the setting up of a task, model, criterion or data set."""
    frames = traceback.extract_tb(trace)
    ours = os.path.dirname(PACKAGE_DIR)
    package = os.path.relpath(frames[-1].filename, ours).partition(os.sep)[0] if frames else ""
    return package in OUR_PACKAGES and frames[-1].line.startswith("raise ") and any(frame.name in SET_UP for frame in frames)


def _copy_files_whole() -> bool:
    """P12: checkpoint_last.pt is a copy of the file just written; it takes its place in one step, or the old one stays."""
    from fairseq.file_io import PathManager

    original = PathManager.copy

    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if not PathManager.supports_rename(dst_path):
            return original(src_path, dst_path, overwrite=overwrite)
        part = f"{dst_path}.part"
        original(src_path, part, overwrite=True)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, dst_path)
        return True

    PathManager.copy = staticmethod(copy)
    return True


def _stop_reading_at_exit() -> bool:
    """P13: threads that read ahead end before the interpreter does; it would stop them inside a decoder, which aborts the process."""
    from fairseq.data.iterators import BackgroundConsumer

    original, ending, readers = BackgroundConsumer.__init__, threading.Event(), weakref.WeakSet()

    class UntilExit:
        """Not a generator, which would keep the workers of an epoch as long as its reader is kept."""

        def __init__(self, source):
            self.source = source

        def __iter__(self):
            for item in self.source:
                if ending.is_set():
                    return
                yield item

    def init(self, queue, source, *args, **kwargs):
        original(self, queue, UntilExit(source), *args, **kwargs)
        readers.add(self)

    def stop():
        ending.set()
        last = time.monotonic() + LONGEST_WAIT
        for reader in list(readers):
            while reader.is_alive() and time.monotonic() < last:
                while not reader._queue.empty():  # a full queue holds the reader up
                    reader._queue.get_nowait()
                reader.join(0.01)

    BackgroundConsumer.__init__ = init
    atexit.register(stop)
    return True


# P5, P9 and P7 come first: they are about what importing fairseq does
PATCHES = {
    "P5": _quiet_warnings,
    "P9": _import_large_packages_late,
    "P7": _keep_root_logger,
    "P1a": _allow_plain_objects,
    "P1b": _broadcast_any_object,
    "P2a": _infer_without_gpu,
    "P2b": _launch_without_gpu,
    "P2c": _wrap_cpu_modules,
    "P2d": _gather_without_gpu,
    "P3": _parse_bf16,
    "P4": _copy_integer_buffers,
    "P6": _announce_epoch_length,
    "P8": _resume_task_state,
    "P10": _look_for_subsets_in_folders,
    "P11": _tell_user_errors_in_a_line,
    "P12": _copy_files_whole,
    "P13": _stop_reading_at_exit,
}


def _switched_off() -> set:
    value = os.environ.get(SWITCH, "").strip()
    if value.lower() in ("", "0", "false"):
        return set()
    if value.lower() in ("1", "true", "all"):
        return set(PATCHES)
    chosen = {name.strip() for name in value.split(",") if name.strip()}
    if chosen - set(PATCHES):
        raise ValueError(f"{SWITCH}={value}: unknown patch {sorted(chosen - set(PATCHES))}; give 1 for all or some of {', '.join(PATCHES)}")
    return chosen


def apply() -> tuple:
    """Put every needed patch in place, once per process; returns the ids of those in place.

    Raises:
        ValueError: the environment variable ``OFASEG_NO_COMPAT`` names a patch that does not exist.
    """
    off = _switched_off()
    for name, patch in PATCHES.items():
        if name not in off and name not in _in_place and patch():
            _in_place.append(name)
    return tuple(_in_place)
