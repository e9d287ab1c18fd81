"""The process that a measured network runs in: it answers requests, one JSON object a line, until its input ends.

`serve` runs in a process that `harness.profiling.processes` starts. Requests are `load` (once, first), then `memory`,
`run`, `inspect`, `break_down`. Answers go to what was standard output; whatever libraries print goes to standard error.
A request that fails is answered with the error and whether it is the user's to mend.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.core.configs import MODEL_CONFIG
from harness.core.errors import UserError, describe_error
from harness.models import SRNetwork, build_model
from harness.profiling.breakdown import measure_breakdown
from harness.profiling.device import Device, parse_device
from harness.profiling.fingerprint import observe_device
from harness.profiling.latency import Timer, inference, local_timer
from harness.profiling.memory import measure_pass_memory
from harness.profiling.onnx_session import OnnxNetwork
from harness.profiling.runtimes import Pass, check_runtime, prepare, prepare_file, runtime_version
from harness.profiling.targets import Network, Target, TargetSpec, fit_to, load_target

_TINY = 16  # pixels a side


def load_network(description: dict[str, Any], threads: int) -> Network:
    """Load the network that a request describes, on the CPU.

    `target`: a `TargetSpec` as a dict; or `config`: a model config as a dict, `weights`: the path of a safetensors file
    with the network's own state, and `is_training`: whether it runs the pass of training. `threads` are those of
    onnxruntime, where that runs the network.
    """
    if "target" in description:
        return load_target(TargetSpec.model_validate(description["target"]), threads=threads).network
    network = build_model(MODEL_CONFIG.validate_python(description["config"]))
    network.load_state_dict(load_file(description["weights"]))
    return network.train(description.get("is_training", False))


class Loaded(NamedTuple):
    """What a process holds after `load`."""

    networks: tuple[Network, ...]
    passes: tuple[Pass, ...]
    timers: tuple[Timer, ...]
    inputs: tuple[Tensor, ...]
    device: Device
    runtime: str


def serve() -> None:
    """Answer requests until standard input ends, which it does when the process that asks ends, however it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.ExitStack() as contexts:
        loaded: Loaded | None = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if request["do"] == "load":
                    loaded, answer = _load(request, contexts)
                else:
                    assert loaded is not None, "the first request must be `load`"
                    answer = _ANSWERS[request["do"]](loaded, request)
            except Exception as error:  # told to whoever asked
                is_users = isinstance(error, UserError)
                text = " ".join(str(error).split()) if is_users else describe_error(error)
                answer = {"error": text, "is_users": is_users}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _load(request: dict[str, Any], contexts: contextlib.ExitStack) -> tuple[Loaded, dict[str, Any]]:
    """Load networks and inputs (`inputs`: a safetensors file with N×B×3×h×w) and enter inference for good."""
    device = parse_device(request["device"])
    runtime = check_runtime(request["runtime"], device, request["precision"])
    if device.threads is not None:
        torch.set_num_threads(device.threads)
    networks = tuple(load_network(each, device.threads or 1) for each in request["networks"])
    for network in networks:
        if isinstance(network, nn.Module):
            network.to(device.torch_device)
    inputs_NBCHW = load_file(request["inputs"])["inputs"].to(device.torch_device)
    casts = runtime in ("eager", "compile")
    contexts.enter_context(inference(device, request["precision"] if casts else "fp32"))
    inputs = tuple(inputs_NBCHW)
    passes = tuple(
        prepare_file(each, runtime, request["precision"], device)
        if isinstance(each, OnnxNetwork)
        else prepare(cast(nn.Module, each), runtime, request["precision"], device, inputs[0])
        for each in networks
    )
    networks, passes = (_fit(request, runs, inputs[0]) for runs in (networks, passes))
    timers = tuple(local_timer(each, inputs, device) for each in passes)
    fingerprint = observe_device(device, runtime_version(runtime))
    return Loaded(networks, passes, timers, inputs, device, runtime), fingerprint.model_dump(mode="json")


def _fit(request: dict[str, Any], runs: Sequence[Pass], input_BCHW: Tensor) -> tuple[Any, ...]:
    """Have what runs files of one size restore the input in tiles where that has another; all else is left as it is."""
    fitted = []
    for description, run in zip(request["networks"], runs, strict=True):
        spec = TargetSpec.model_validate(description["target"]) if "target" in description else None
        size = (input_BCHW.shape[-2], input_BCHW.shape[-1])
        if spec is not None and spec.kind == "onnx" and spec.contract is not None and not spec.contract.admits(size):
            network: Network = _as_network(run)
            run = fit_to(Target(spec, network, spec.contract, ""), size)
        fitted.append(run)
    return tuple(fitted)


def _as_network(run: Pass) -> Network:
    return lambda input_BCHW: torch.as_tensor(run(input_BCHW)).float()


def _memory(loaded: Loaded, request: dict[str, Any]) -> dict[str, Any]:
    """Measure the memory of one pass; in eager libraries are loaded by a tiny one before, if it can be."""
    index = request["network"]
    if loaded.runtime == "eager":
        with contextlib.suppress(Exception):
            loaded.passes[index](loaded.inputs[0][:1, :, :_TINY, :_TINY])
    return {"bytes": measure_pass_memory(lambda: loaded.passes[index](loaded.inputs[0]), loaded.device)}


def _run(loaded: Loaded, request: dict[str, Any]) -> dict[str, Any]:
    """Time a pass; on one thread also tell which share of the time it had the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    milliseconds = loaded.timers[request["network"]](request["round"], request["untimed"])
    share = (time.process_time() - processor) / (time.perf_counter() - wall)
    return {"ms": milliseconds, "core_share": share if loaded.device.threads == 1 else None}


def _inspect(loaded: Loaded, request: dict[str, Any]) -> dict[str, Any]:
    """Find the attention that the network spends on the inputs, and how far other runtimes are from eager float32."""
    network, run = loaded.networks[request["network"]], loaded.passes[request["network"]]
    with _in_float32(loaded.device):
        shares = [network.restore(each).hard_share_SB for each in loaded.inputs if isinstance(network, SRNetwork)]
        found = [share_SB.mean().item() for share_SB in shares if len(share_SB)]
        expected = network(loaded.inputs[0]) if loaded.runtime != "eager" else None
    error = None
    if expected is not None:
        given = torch.as_tensor(run(loaded.inputs[0])).to(expected)
        error = (given - expected).abs().max().item()
    return {"attention_share": sum(found) / len(found) if found else None, "output_error": error}


@contextlib.contextmanager
def _in_float32(device: Device) -> Iterator[None]:
    with torch.autocast(device.kind, enabled=False):
        yield


def _break_down(loaded: Loaded, request: dict[str, Any]) -> dict[str, Any]:
    network = loaded.networks[request["network"]]
    assert isinstance(network, SRNetwork)
    record = measure_breakdown(
        network,
        loaded.inputs[0],
        device=loaded.device.text,
        precision=request["precision"],
        min_seconds=request["min_seconds"],
    )
    return record.model_dump(mode="json")


_ANSWERS: dict[str, Callable[[Loaded, dict[str, Any]], dict[str, Any]]] = {
    "memory": _memory,
    "run": _run,
    "inspect": _inspect,
    "break_down": _break_down,
}
