"""Inference against the machine's peak, and each path of the network against the others."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.bench.equality import InferenceCheck, check_inference
from harness.bench.peak import Peak, products, read_peaks
from harness.bench.rounds import Contestant, Effort, Machine, Times, describe_machine, measure_rounds, part_of
from harness.core.configs import CAMixerSRConfig, FrozenConfig, RoutingConfig, SwinIRConfig
from harness.core.environment import EnvironmentRecord, now, observe_environment
from harness.models import SRNetwork, describe_kernels
from harness.models.literal import word_for_word
from harness.profiling import Device, canonical_macs, chosen_threads, parse_device
from harness.profiling.network_state import preserved_training_state
from harness.trial import build_seeded, routed

GAMMAS = (1.0, 0.5, 0.25, 0.0)
_SLOW_EVERY = 4  # rounds between two turns of the paths that are there for comparison


class InferenceCase(FrozenConfig):
    """A network, the low-resolution (height, width) of its one image, and what is measured of it.

    That is its default path, operator by operator and word for word: of a CAMixerSR at every γ of `gammas` under the
    policy `fixed`, of a SwinIR once, its γ being None. `bf16_gammas` are measured under autocast too.
    """

    name: str
    model: CAMixerSRConfig | SwinIRConfig
    input_size: tuple[int, int]
    gammas: tuple[float, ...] = GAMMAS
    bf16_gammas: tuple[float | None, ...] = ()

    @property
    def settings(self) -> tuple[float | None, ...]:
        """What the network is measured at: its γ, or None."""
        return self.gammas if isinstance(self.model, CAMixerSRConfig) else (None,)


class NetworkTimes(FrozenConfig):
    """One network at one γ (None where it does not route).

    `macs` is the canonical count of one forward pass; `peak_share` = 2·macs / median / the fp32 peak of the same run.
    `time_over_full` and `macs_over_full` are relative to γ = 1, `operators_ratio` and `literal_ratio` the time operator
    by operator and word for word over that of the default path, `bf16_ratio` that of the default path under autocast.
    """

    name: str
    model: str
    input_size: tuple[int, int]
    gamma: float | None
    macs: int
    times: Times
    peak_share: float
    time_over_full: float | None
    macs_over_full: float | None
    operators_ratio: float
    literal_ratio: float
    bf16_ratio: float | None
    bf16_peak_share: float | None
    other_times: dict[str, Times]


class InferenceBench(FrozenConfig):
    """What `harness bench inference` found.

    `largest_difference` (fp32, of full scale) and `largest_bf16_error` (RMS, of the output's spread) are those of
    the check that came first. `core_share` well below 1 says that others were at work.
    """

    protocol: str
    machine: Machine
    environment: EnvironmentRecord
    largest_difference: float
    largest_bf16_error: float
    core_share: float | None
    peaks: dict[str, Peak]
    networks: tuple[NetworkTimes, ...]
    product_times: dict[str, Times]
    seconds: float
    measured_at: str


def default_cases() -> tuple[InferenceCase, ...]:
    """Return Base ×4 and SwinIR-light ×4 for a 1280×720 output, and two networks of the size that searches try."""
    full, small = (180, 320), (48, 48)
    return (
        InferenceCase(name="Base ×4", model=CAMixerSRConfig(), input_size=full, bf16_gammas=(0.5,)),
        InferenceCase(name="SwinIR-light ×4", model=SwinIRConfig(), input_size=full, bf16_gammas=(None,)),
        *(
            InferenceCase(
                name=f"C{channels} 2-2 ×4",
                model=CAMixerSRConfig(channels=channels, groups=(2, 2)),
                input_size=small,
                bf16_gammas=(0.5,),
            )
            for channels in (24, 36)
        ),
    )


class _Checked(NamedTuple):
    """A device on which all paths agree: how far they are apart at worst, and the seconds that it took to see."""

    place: Device
    machine: Machine
    worst: InferenceCheck
    seconds: float


def measure_inference(
    cases: Sequence[InferenceCase],
    effort: Effort,
    *,
    devices: Sequence[str] = ("cpu:1",),
    sides: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[InferenceBench, ...]:
    """Check every network against itself word for word, then measure all cases and the peak in the same rounds.

    One bench for each of `devices`, one after the other; all are checked before the first is measured. `sides` are
    those of the square matrices of the peak. The weights are untrained, which changes no operation. fp32 is under
    torch's settings as found: on GPUs convolutions may round their inputs to TF32, the products do not.
    Raises `BrokenPathError` before anything is timed, and `UserError` for a device that is not there.
    """
    places = [parse_device(device) for device in devices]
    checked = [_check(cases, place) for place in places]
    return tuple(
        _measure(cases, effort, where, sides, part_of(progress, index, len(places)))
        for index, where in enumerate(checked)
    )


def _check(cases: Sequence[InferenceCase], place: Device) -> _Checked:
    started, machine = time.perf_counter(), describe_machine(place)  # the code may be another when it ends
    with chosen_threads(place.threads):
        differences, bf16_errors = zip(*(check_inference(case.model, place) for case in cases), strict=True)
    worst = InferenceCheck(max(differences), max(bf16_errors))
    return _Checked(place, machine, worst, time.perf_counter() - started)


def _measure(
    cases: Sequence[InferenceCase],
    effort: Effort,
    checked: _Checked,
    sides: Sequence[int] | None,
    progress: Callable[[int, int], None],
) -> InferenceBench:
    started, place = time.perf_counter(), checked.place
    with chosen_threads(place.threads):
        contestants = products(place, sides)
        networks = []
        for case in cases:
            network = build_seeded(case.model, seed=0).eval().to(place.torch_device)
            networks.append(network)
            contestants += _contestants(case, network, place.torch_device)
        with preserved_training_state(*networks), torch.inference_mode():
            times, core_share = measure_rounds(contestants, place, effort, progress)
    peaks = read_peaks(times)
    return InferenceBench(
        protocol=effort.describe(),
        machine=checked.machine,
        environment=observe_environment(describe_kernels()),
        largest_difference=checked.worst.difference,
        largest_bf16_error=checked.worst.bf16_error,
        core_share=core_share,
        peaks=peaks,
        networks=tuple(row for case in cases for row in _rows(case, times, peaks)),
        product_times={name: measured for name, measured in times.items() if name.startswith("mm ")},
        seconds=checked.seconds + time.perf_counter() - started,
        measured_at=now(),
    )


def _contestants(case: InferenceCase, network: SRNetwork, device: torch.device) -> list[Contestant]:
    """Return every way in which a case is run, named `case/γ/way`."""
    height, width = case.input_size
    input_BCHW = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    routes = isinstance(case.model, CAMixerSRConfig)
    every = 1 if routes else 2  # what does not route is there for comparison
    contestants = []
    for index, gamma in enumerate(case.settings):
        default = routed(network, None if gamma is None else RoutingConfig(gamma=gamma))
        operators = copy.copy(default)
        operators.is_literal = True
        run = _forward(default, input_BCHW)
        first_default = _key(case, case.settings[0], "default")
        contestants.append(Contestant(_key(case, gamma, "default"), run, every, like=first_default))
        contestants += [
            Contestant(
                _key(case, gamma, way),
                _forward(path, input_BCHW),
                every=_SLOW_EVERY,
                first=(index if routes else -1) % _SLOW_EVERY,
                like=_key(case, case.settings[0], way),
            )
            for way, path in (("operators", operators), ("literal", word_for_word(operators).eval()))
        ]
        if gamma in case.bf16_gammas:
            contestants.append(Contestant(_key(case, gamma, "bf16"), _cast(run, device.type), every))
    return contestants


def _key(case: InferenceCase, gamma: float | None, way: str) -> str:
    return f"{case.name}/{gamma}/{way}"


def _forward(network: SRNetwork, input_BCHW: Tensor) -> Callable[[], Tensor]:
    return lambda: network.restore(input_BCHW).image_BCHW


def _cast(run: Callable[[], Tensor], device_type: str) -> Callable[[], Tensor]:
    def cast() -> Tensor:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return run()

    return cast


def _rows(case: InferenceCase, times: dict[str, Times], peaks: dict[str, Peak]) -> list[NetworkTimes]:
    rows: list[NetworkTimes] = []
    for gamma in case.settings:
        own = {
            way: times[_key(case, gamma, way)]
            for way in ("default", "operators", "literal", "bf16")
            if _key(case, gamma, way) in times
        }
        default = own.pop("default")
        ratios = {way: measured.median_ms / default.median_ms for way, measured in own.items()}
        model = case.model
        if isinstance(model, CAMixerSRConfig) and gamma is not None:
            model = model.with_routing(RoutingConfig(gamma=gamma))
        macs = canonical_macs(model, case.input_size)
        full = next((row for row in rows if row.gamma == 1), None)
        gflops = 2 * macs / 1e6
        is_full = gamma == 1
        rows.append(
            NetworkTimes(
                name=case.name,
                model=case.model.label(),
                input_size=case.input_size,
                gamma=gamma,
                macs=macs,
                times=default,
                peak_share=gflops / default.median_ms / peaks["fp32"].gflops_per_s,
                time_over_full=1.0 if is_full else default.median_ms / full.times.median_ms if full else None,
                macs_over_full=1.0 if is_full else macs / full.macs if full else None,
                operators_ratio=ratios["operators"],
                literal_ratio=ratios["literal"],
                bf16_ratio=ratios.get("bf16"),
                bf16_peak_share=(
                    gflops / own["bf16"].median_ms / peaks["bf16"].gflops_per_s if "bf16" in own else None
                ),
                other_times=own,
            )
        )
    return rows
