import pytest
import torch
from torch import nn

from harness.training.ema import MovingAverage


def test_average_follows_the_recursion_written_out() -> None:
    network = nn.Linear(2, 1, bias=False)
    weight = network.weight
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]
    with torch.no_grad():
        weight.fill_(values[0])
    average = MovingAverage(network, decay=0.3)
    expected = values[0]
    for step, value in enumerate(values[1:]):
        with torch.no_grad():
            weight.fill_(value)
        average.update(network, step)
        # warm-up: 1/10, 2/11, 3/12 = 0.25, then 4/13 > 0.3 and the decay holds
        decay = [0.1, 2 / 11, 0.25, 0.3, 0.3, 0.3][step]
        expected = decay * expected + (1 - decay) * value
        assert average.weights["weight"].tolist()[0] == pytest.approx([expected] * 2, rel=1e-6)


def test_without_decay_the_average_is_the_latest_weights() -> None:
    network = nn.Linear(3, 3)
    average = MovingAverage(network, decay=0.0)
    with torch.no_grad():
        network.weight.normal_()
    average.update(network, 0)
    assert torch.equal(average.weights["weight"], network.weight)


def test_average_shares_no_memory_with_the_network_nor_with_what_it_is_loaded_from() -> None:
    network = nn.Linear(2, 2)
    before = network.weight.detach().clone()
    average = MovingAverage(network, decay=0.9)
    average.weights["weight"].add_(1)
    assert torch.equal(network.weight, before)
    stored = {name: torch.zeros_like(value) for name, value in average.weights.items()}
    average.load(stored)
    average.update(network, 5)
    assert not torch.equal(average.weights["weight"], stored["weight"])
    assert torch.equal(stored["weight"], torch.zeros(2, 2))
