"""Data workers end with their epoch: a leak of one set per epoch fills the memory of long runs."""

import multiprocessing
import time

from tests.toy import write_toy_shards
from tests.user_tasks.test_seq2seq_segmentation import make_task


def test_workers_of_finished_epochs_are_gone(tmp_path):
    write_toy_shards(tmp_path, "train", 6)
    task = make_task(tmp_path, supervised=True)
    task.load_dataset("train")
    before = len(multiprocessing.active_children())
    epochs = task.get_batch_iterator(task.dataset("train"), max_sentences=2, num_workers=1, data_buffer_size=2)
    kept = []  # as progress bars and profilers do, keep the iterators
    for _ in range(3):
        kept.append(epochs.next_epoch_itr())
        assert sum(len(batch["id"]) for batch in kept[-1]) == 6
    deadline = time.monotonic() + 30  # those on their way out need a moment where other programs run
    while len(multiprocessing.active_children()) > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(multiprocessing.active_children()) <= before + 1
