"""Device names as users write them."""

import os

import pytest
import torch

from harness.core.errors import UserError
from harness.profiling.device import chosen_threads, describe_device, parse_device


def test_cpu_without_a_number_is_one_thread() -> None:
    assert parse_device("cpu") == parse_device("cpu:1")
    device = parse_device("cpu:1")
    assert (device.text, device.torch_device, device.threads) == ("cpu:1", torch.device("cpu"), 1)


@pytest.mark.parametrize(
    "text", ["", "gpu", "cpu:", "cpu:two", "cpu:-1", "cpu:1.5", "cpu:²", "cuda:x", "cpu:1:1", "CPU"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected cpu:THREADS, cuda:INDEX or mps"):
        parse_device(text)


def test_more_threads_than_cores_are_refused() -> None:
    cores = os.cpu_count() or 1
    assert parse_device(f"cpu:{cores}").threads == cores
    for text in ("cpu:0", f"cpu:{cores + 1}"):
        with pytest.raises(UserError, match=f"this machine has cpu:1 to cpu:{cores}"):
            parse_device(text)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device = parse_device("cuda")
    assert (device.text, device.torch_device, device.threads) == ("cuda:0", torch.device("cuda", 0), None)
    with pytest.raises(UserError, match="got 'cuda:1', available: cuda:0, cpu:1 to cpu:"):
        parse_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="got 'cuda:0', available: cpu:1 to cpu:"):
        parse_device("cuda:0")


def test_description_names_the_processor() -> None:
    name, threads = describe_device("cpu:1")
    assert name
    assert threads == 1


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with chosen_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with chosen_threads(None):
        assert torch.get_num_threads() == before
