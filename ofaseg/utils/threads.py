"""Work on many small things at once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Sequence, TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")


def one_core_each(function: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """``[function(item) for item in items]`` without gradients; on a CPU as many items at a time as torch has threads.

    Operations on little data gain nothing from several threads; several items do. `function` must not depend on what the calling
    thread has set, such as autocast. The first error is raised when the items before it are done.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items)) if device.type == "cpu" else 1
    with torch.no_grad():
        if count < 2:
            return [function(item) for item in items]
        try:
            with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(torch.no_grad()(function), items))  # grad mode belongs to a thread
        finally:
            torch.set_num_threads(threads)
