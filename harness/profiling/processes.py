"""Latency and memory of networks in fresh processes of their own, taking turns by the protocol of `latency.py`."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from harness.core.conditions import Conditions
from harness.core.device_lock import computing, measuring
from harness.core.environment import DeviceFingerprint
from harness.core.errors import UserError
from harness.core.records import BreakdownRecord, LatencyRecord
from harness.models import SRNetwork
from harness.profiling.device import Device, parse_device
from harness.profiling.latency import Effort, Timer, make_record, measure
from harness.profiling.onnx_session import OnnxNetwork
from harness.profiling.runtimes import check_runtime
from harness.profiling.targets import Target

# Other runtimes compute the same network in another order. More than this is another network (or bfloat16 unasked for,
# which is off by 1e-2).
MAX_OUTPUT_ERROR = 1e-3
_TELLING_LINES = 3  # of what a process that died has said


class NetworkProcess:
    """A process of its own with networks loaded in it, to be used as a context.

    It ends with the context, and by itself when this process ends, however it ends. Signals of the terminal do not
    reach it: whoever started it decides what they mean. `UserError` and `RuntimeError` tell what went wrong inside; of
    a network of anybody's, which `label` names, it is always the user's to mend.
    """

    def __init__(self, device: Device, label: str | None = None):
        self._label = label
        self._core_shares: dict[int, list[float | None]] = {}
        environment = dict(os.environ)
        if device.threads is not None:
            environment["OMP_NUM_THREADS"] = str(device.threads)  # pools of threads are made as large as needed
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from harness.profiling.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def send(self, **request: Any) -> None:
        """Ask for something, without waiting for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which `receive` tells
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to what was asked."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise self._failure(f"the measuring process ended (exit code {code}): {self._last_words(code)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"]) if answer["is_users"] else self._failure(answer["error"])
        return answer

    def _failure(self, text: str) -> Exception:
        return RuntimeError(text) if self._label is None else UserError(f"{self._label} cannot be measured: {text}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask and wait."""
        self.send(**request)
        return self.receive()

    def timer(self, network: int) -> Timer:
        """Return what times a network inside, for `latency.measure`."""

        def run(number: int, untimed: bool) -> float:
            answer = self.ask(do="run", network=network, round=number, untimed=untimed)
            self._core_shares.setdefault(network, []).append(answer["core_share"])
            return float(answer["ms"])

        return run

    def core_share(self, network: int) -> float | None:
        """Return the share of the processor that passes of a network had (median); None where several threads ran."""
        shares = [share for share in self._core_shares.get(network, ()) if share is not None]
        return min(1.0, statistics.median(shares)) if shares else None

    def _last_words(self, code: int) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        silent = "killed, perhaps for want of memory" if code < 0 else "it said nothing"
        return " | ".join(lines[-_TELLING_LINES:]) or silent


def measure_in_processes(
    networks: Mapping[str, SRNetwork | Target],
    inputs_NBCHW: Tensor,
    conditions: Conditions,
    effort: Effort,
    *,
    reference: SRNetwork | Target | None = None,
    reference_name: str | None = None,
    reference_conditions: Conditions | None = None,
    images: Sequence[str] = (),
    with_memory: bool = False,
) -> dict[str, LatencyRecord]:
    """Measure networks in one fresh process, interleaved with `reference` in another.

    Several `networks` are meant to be one network under several routings. The reference runs under the same conditions,
    but for runtime and precision where `reference_conditions` say others; the records are then `compared_under` these.
    `inputs_NBCHW` are N batches of B×C×h×w in [0, 1], which all restore in turn; `images` are their names where they
    are no random numbers. An ONNX file that takes images of another size alone restores them in tiles. `with_memory`:
    also the memory of one pass, in the same process, before anything is timed; of several networks the first one's
    alone.
    Raises `UserError` for a device, a runtime or a network that cannot be measured so.
    """
    effort.check()
    device = parse_device(conditions.device)
    beside = conditions if reference_conditions is None else reference_conditions
    for each in (conditions, beside):
        check_runtime(each.runtime, device, each.precision)
    groups: list[list[SRNetwork | Target]] = [list(networks.values())]
    if reference is not None:
        groups.append([reference])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        inputs = folder / "inputs.safetensors"
        save_file({"inputs": inputs_NBCHW.contiguous()}, inputs)
        with computing(device.lock):  # building, exporting and compiling would disturb others' measurements
            processes = [stack.enter_context(NetworkProcess(device, _foreign_label(group[0]))) for group in groups]
            fingerprints = _load(processes, groups, folder, inputs, [conditions, beside][: len(groups)], device)
            memory = processes[0].ask(do="memory", network=0)["bytes"] if with_memory else None
        timers = [processes[0].timer(index) for index in range(len(networks))]
        timers += [process.timer(0) for process in processes[1:]]
        measured = measure(timers, device, effort, has_reference=reference is not None)
        with computing(device.lock):
            inspected = [processes[0].ask(do="inspect", network=index) for index in range(len(networks))]
        of_reference = processes[1].core_share(0) if reference is not None else None
        core_shares = [processes[0].core_share(index) for index in range(len(networks))]
    records = {}
    for index, (name, network) in enumerate(networks.items()):
        shares = [share for share in (core_shares[index], of_reference) if share is not None]
        _refuse_other_output(network, conditions, inspected[index]["output_error"])
        facts = {
            "runtime": conditions.runtime,
            "precision": conditions.precision,
            "input_size": tuple(inputs_NBCHW.shape[-2:]),
            "batch_size": inputs_NBCHW.shape[1],
            "process": "fresh",
            "images": tuple(images),
            "fingerprint": fingerprints[0],
            "model_hash": network.spec.identity() if isinstance(network, Target) else network.config.config_hash(),
            "peak_memory_bytes": memory if index == 0 else None,
            "core_share": min(shares, default=None),
            "compared_under": None if beside[1:3] == conditions[1:3] else beside._replace(input_size=None).text,
            "mode": "training" if isinstance(network, SRNetwork) and network.training else "inference",
            **inspected[index],
        }
        named = None if reference is None else reference_name or _label(reference)
        records[name] = make_record(measured, index, device, effort, reference=named, facts=facts)
    return records


def measure_file_memory(file: Target, input_BCHW: Tensor, conditions: Conditions) -> int:
    """Return the bytes that one pass of an ONNX file in its runtime needs above what a fresh process held before."""
    device = parse_device(conditions.device)
    with (
        tempfile.TemporaryDirectory() as name,
        NetworkProcess(device, _foreign_label(file)) as process,
        computing(device.lock),
    ):
        inputs = Path(name) / "inputs.safetensors"
        save_file({"inputs": input_BCHW[None].contiguous()}, inputs)
        _load([process], [[file]], Path(name), inputs, [conditions], device)
        return int(process.ask(do="memory", network=0)["bytes"])


def break_down_in_process(
    network: SRNetwork, input_BCHW: Tensor, conditions: Conditions, *, min_seconds: float = 3.0
) -> BreakdownRecord:
    """Divide the time of a pass in eval mode among the network's components (breakdown.py), in a fresh process."""
    device = parse_device(conditions.device)
    with tempfile.TemporaryDirectory() as name, NetworkProcess(device) as process:
        folder = Path(name)
        inputs = folder / "inputs.safetensors"
        save_file({"inputs": input_BCHW[None].contiguous()}, inputs)
        with computing(device.lock):
            _load([process], [[network]], folder, inputs, [conditions], device)
        with measuring(device.lock):
            answer = process.ask(do="break_down", network=0, min_seconds=min_seconds, precision=conditions.precision)
    return BreakdownRecord.model_validate(answer)


def _load(
    processes: Sequence[NetworkProcess],
    groups: Sequence[Sequence[SRNetwork | Target]],
    folder: Path,
    inputs: Path,
    conditions: Sequence[Conditions],
    device: Device,
) -> list[DeviceFingerprint]:
    """Have each process load its networks, one after the other: two at once would need twice the memory and cores."""
    found = []
    for number, (process, group, conditions_here) in enumerate(zip(processes, groups, conditions, strict=True)):
        described = [describe_network(network, folder / f"{number}.{index}") for index, network in enumerate(group)]
        answer = process.ask(
            do="load",
            networks=described,
            inputs=str(inputs),
            device=device.text,
            runtime=conditions_here.runtime,
            precision=conditions_here.precision,
        )
        found.append(DeviceFingerprint.model_validate(answer))
    return found


def describe_network(network: SRNetwork | Target, weights: Path) -> dict[str, Any]:
    """Save the network's state and return the description that `worker.load_network` builds it from again.

    One in train mode runs the forward pass of training. A network of anybody's is loaded again from its spec.
    """
    if isinstance(network, Target):
        if not isinstance(network.network, SRNetwork):
            return {"target": network.spec.model_dump(mode="json")}
        network = network.network
    state = network.state_dict()
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, weights)
    config = network.config.model_dump(mode="json")
    return {"config": config, "weights": str(weights), "is_training": network.training}


def _label(network: SRNetwork | Target) -> str:
    return network.name if isinstance(network, Target) else network.config.label()


def _is_exact(network: SRNetwork | Target) -> bool:
    """Whether runtimes may differ by the order of sums alone: 8 and 16 bits are rounded by each in its own way."""
    return not (isinstance(network, Target) and isinstance(network.network, OnnxNetwork)) or network.network.is_float32


def _foreign_label(network: SRNetwork | Target) -> str | None:
    """Return the name of a network that is none of ours."""
    return None if isinstance(network, SRNetwork) or isinstance(network.network, SRNetwork) else network.name


def _refuse_other_output(network: SRNetwork | Target, conditions: Conditions, error: float | None) -> None:
    is_other = conditions.precision == "fp32" and error is not None and not error <= MAX_OUTPUT_ERROR
    if is_other and _is_exact(network):
        raise UserError(
            f"runtime {conditions.runtime} restores other images than {_label(network)} does: the largest "
            f"difference is {error:.2g}, expected at most {MAX_OUTPUT_ERROR:g}; its latency would be another network's"
        )
