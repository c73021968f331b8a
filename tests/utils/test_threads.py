"""Items at the same time give the results of items in turn, and leave torch's settings alone."""

import threading

import pytest
import torch

from ofaseg.utils.threads import one_core_each

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_without_gradients(two_threads):
    weight = torch.ones(3, requires_grad=True)
    results = one_core_each(lambda k: (k * weight, torch.get_num_threads()), range(7), CPU)
    assert [int(value[0]) for value, _ in results] == list(range(7))
    assert not any(value.requires_grad for value, _ in results) and {threads for _, threads in results} == {1}
    assert torch.get_num_threads() == 2 and torch.is_grad_enabled()


def test_two_items_run_at_once(two_threads):
    together = threading.Barrier(2, timeout=30)  # whoever comes alone waits, and then fails
    one_core_each(lambda _: together.wait(), range(2), CPU)


@pytest.mark.parametrize("items, device", [(range(1), CPU), (range(5), torch.device("cuda"))])
def test_one_item_or_another_device_stays_in_this_thread(two_threads, items, device):
    assert set(one_core_each(lambda _: (threading.get_ident(), torch.get_num_threads()), items, device)) == {(threading.get_ident(), 2)}


def test_errors_arrive(two_threads):
    with pytest.raises(ZeroDivisionError):
        one_core_each(lambda k: 1 // k, [1, 0, 1], CPU)
    assert torch.get_num_threads() == 2 and one_core_each(len, [], CPU) == []
