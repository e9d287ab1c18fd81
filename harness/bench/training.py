"""A training step word for word, with every window on both paths, and as it is by default; and what loading takes."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.bench.equality import check_training
from harness.bench.peak import Peak, products, read_peaks
from harness.bench.rounds import Contestant, Effort, Machine, Times, describe_machine, measure_rounds, part_of
from harness.core.configs import CAMixerSRConfig, FrozenConfig, TrainingConfig
from harness.core.environment import EnvironmentRecord, now, observe_environment
from harness.data import CropSampler, PairedDataset
from harness.models import CAMixerSR, SRNetwork, describe_kernels
from harness.models.literal import LiteralCAMixerSR
from harness.profiling import Device, canonical_macs, chosen_threads, parse_device
from harness.training import ratio_loss
from harness.trial import build_seeded, routed

_SLOW_EVERY = 2


class TrainingCase(FrozenConfig):
    """A network, and the batches that it is trained on."""

    name: str
    model: CAMixerSRConfig
    batch_size: int
    patch_size: int  # low-resolution pixels of a side


class TrainingBench(FrozenConfig):
    """What `harness bench training` found.

    `times` and `images_per_second` are of whole steps: `literal` word for word, `dense` with every window on both
    paths, `default` what `harness train` runs. `ratio` and `dense_ratio` are images per second over those of `literal`
    and of `dense`. `peak_share` counts three times the canonical MACs of a forward pass (the backward pass is two) at
    the share of attention that was drawn, `attention_share`. `loader_share` is the time to draw a batch over that of a
    default step.
    """

    protocol: str
    machine: Machine
    environment: EnvironmentRecord
    case: TrainingCase
    dataset: str
    largest_difference: float
    core_share: float | None
    attention_share: float
    macs: int
    peaks: dict[str, Peak]
    times: dict[str, Times]
    images_per_second: dict[str, float]
    ratio: dict[str, float]
    dense_ratio: dict[str, float]
    peak_share: dict[str, float]
    loader: Times
    loader_share: float
    product_times: dict[str, Times]
    seconds: float
    measured_at: str


def default_training_case() -> TrainingCase:
    """Return Base ×4 on batches of 8 patches of 64×64."""
    return TrainingCase(name="Base ×4", model=CAMixerSRConfig(), batch_size=8, patch_size=64)


class _Checked(NamedTuple):
    """A device on which all paths agree: the largest difference between them, and the seconds that it took to see."""

    place: Device
    machine: Machine
    difference: float
    seconds: float


def measure_training(
    case: TrainingCase,
    dataset: PairedDataset,
    effort: Effort,
    *,
    devices: Sequence[str] = ("cpu:1",),
    sides: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TrainingBench, ...]:
    """Check the gradients of every path against algorithm 1, then measure steps, loader and peak in the same rounds.

    One bench for each of `devices`, one after the other; all are checked before the first is measured. A step is
    forward pass, loss (L1 and the ratio loss of the network's γ), backward pass and AdamW. Its learning rate is 0 and
    the mask's seed fixed, so that every step of every path is the same work: the same batch, weights and mask.
    Raises `BrokenPathError` before anything is timed, and `UserError` for a device that is not there or for images that
    are smaller than a patch.
    """
    places = [parse_device(device) for device in devices]
    settings = TrainingConfig(batch_size=case.batch_size, hr_patch_size=case.patch_size * case.model.scale)
    samplers = [
        CropSampler(dataset, batch_size=settings.batch_size, hr_patch_size=settings.hr_patch_size, augment=True, seed=0)
        for _ in places
    ]
    checked = [_check(case, place) for place in places]
    return tuple(
        _measure(case, settings, sampler, effort, where, sides, part_of(progress, index, len(places)))
        for index, (where, sampler) in enumerate(zip(checked, samplers, strict=True))
    )


def _check(case: TrainingCase, place: Device) -> _Checked:
    started, machine = time.perf_counter(), describe_machine(place)  # the code may be another when it ends
    with chosen_threads(place.threads):
        difference = check_training(case.model, place)
    return _Checked(place, machine, difference, time.perf_counter() - started)


def _measure(
    case: TrainingCase,
    settings: TrainingConfig,
    sampler: CropSampler,
    effort: Effort,
    checked: _Checked,
    sides: Sequence[int] | None,
    progress: Callable[[int, int], None],
) -> TrainingBench:
    started, place = time.perf_counter(), checked.place
    with chosen_threads(place.threads):
        network = build_seeded(case.model, seed=0).train().to(place.torch_device)
        assert isinstance(network, CAMixerSR)
        dense = routed(network, case.model.routing)
        assert isinstance(dense, CAMixerSR)
        dense.is_dense = True
        batch = sampler.next_batch()
        low_BCHW, high_BCHW = batch.low_BCHW.to(place.torch_device), batch.high_BCHW.to(place.torch_device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay
        )
        gamma = case.model.routing.gamma
        paths: dict[str, SRNetwork] = {
            "literal": LiteralCAMixerSR(network).train(),
            "dense": dense,
            "default": network,
        }
        contestants = [
            *products(place, sides),
            *(
                Contestant(name, _step(path, optimizer, low_BCHW, high_BCHW, gamma), _SLOW_EVERY if index == 0 else 1)
                for index, (name, path) in enumerate(paths.items())
            ),
            Contestant("loader", sampler.next_batch),
        ]
        measured, core_share = measure_rounds(contestants, place, effort, progress)
        with torch.no_grad():
            shares_SB = network.restore(low_BCHW, generator=torch.Generator().manual_seed(0)).hard_share_SB
    peaks = read_peaks(measured)
    times = {name: measured[name] for name in paths}
    rates = {name: case.batch_size / taken.median_ms * 1e3 for name, taken in times.items()}
    macs = canonical_macs(
        case.model,
        (case.patch_size, case.patch_size),
        attention_share=[min(max(share, 0.0), 1.0) for share in shares_SB.mean(dim=1).tolist()],
        batch_size=case.batch_size,
    )
    return TrainingBench(
        protocol=effort.describe(),
        machine=checked.machine,
        environment=observe_environment(describe_kernels()),
        case=case,
        dataset=sampler.dataset.name,
        largest_difference=checked.difference,
        core_share=core_share,
        attention_share=float(shares_SB.mean()),
        macs=macs,
        peaks=peaks,
        times=times,
        images_per_second=rates,
        ratio={name: rate / rates["literal"] for name, rate in rates.items()},
        dense_ratio={name: rate / rates["dense"] for name, rate in rates.items()},
        peak_share={
            name: 3 * 2 * macs / 1e6 / taken.median_ms / peaks["fp32"].gflops_per_s for name, taken in times.items()
        },
        loader=measured["loader"],
        loader_share=measured["loader"].median_ms / times["default"].median_ms,
        product_times={name: taken for name, taken in measured.items() if name.startswith("mm ")},
        seconds=checked.seconds + time.perf_counter() - started,
        measured_at=now(),
    )


def _step(
    network: SRNetwork, optimizer: torch.optim.Optimizer, low_BCHW: Tensor, high_BCHW: Tensor, gamma: float
) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        restored = network.restore(low_BCHW, generator=torch.Generator().manual_seed(0))
        loss = F.l1_loss(restored.image_BCHW, high_BCHW) + ratio_loss(restored.hard_share_SB, gamma)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
