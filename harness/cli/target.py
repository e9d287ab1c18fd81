"""From what a user calls a network to a network: presets, config files and bundles."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.configs import CAMixerSRConfig, RoutingConfig, parse_config, parse_model_config
from harness.core.errors import UserError
from harness.core.factories import with_code

if TYPE_CHECKING:
    from harness.models import SRNetwork
    from harness.profiling import TargetSpec


def resolve_config(model: str, scale: int | None, gamma: float | None, policy: str | None) -> Any:
    """Return the config that `model` names, under the routing asked for."""
    from harness.models import PRESETS, preset_config

    path = Path(model)
    if model in PRESETS:
        config = preset_config(model, 4 if scale is None else scale)
    elif path.is_dir():
        from harness.export import read_bundle_config

        config = read_bundle_config(path).model
    elif path.is_file():
        from harness.search.yaml_lines import read_yaml

        config = with_code(parse_model_config(read_yaml(path).values, str(path)))
    elif all(model.rpartition(":")[::2]):
        values = {"family": "custom", "factory": model, "scale": 4 if scale is None else scale}
        config = with_code(parse_model_config(values, model))
    else:
        known = ", ".join(PRESETS)
        raise UserError(
            f"unknown model {model!r}: expected a preset ({known}), a config file, a bundle folder, MODULE:FACTORY "
            "or FILE.py:FACTORY; `profile` and `evaluate` also take a .pt, .ts, .pt2 or .onnx file"
        )
    if scale is not None and config.scale != scale:
        raise UserError(f"--scale {scale}: {model} is of scale {config.scale}")
    if gamma is None and policy is None:
        return config
    if not isinstance(config, CAMixerSRConfig):
        raise UserError(f"--gamma and --routing: {config.label()} does not route")
    settings: dict[str, Any] = {
        "policy": policy or config.routing.policy,
        "gamma": config.routing.gamma if gamma is None else gamma,
    }
    if settings["policy"] == "detail":  # calibrated once, for any γ
        settings["block_weights"] = config.routing.block_weights
    if settings["policy"] == "schedule":
        raise UserError(f"--gamma: {model} routes by a schedule, which has a γ for each block; give --routing too")
    return config.with_routing(parse_config(RoutingConfig, settings, "--gamma/--routing"))


def resolve_network(
    model: str, scale: int | None, gamma: float | None, policy: str | None, weights: Path | None
) -> "tuple[SRNetwork, str]":
    """Return the network in eval mode, and where its weights are from."""
    from harness.export import load_network
    from harness.models import load_weights
    from harness.trial import build_seeded, routed

    config = resolve_config(model, scale, gamma, policy)
    if Path(model).is_dir():
        if weights is not None:
            raise UserError(f"--weights {weights}: the bundle {model} has its own")
        network = load_network(Path(model))
        return routed(network, getattr(config, "routing", None)), f"{model}/model.safetensors"
    network = build_seeded(config, seed=0)
    if weights is None:
        return network.eval(), "untrained" if any(True for _ in network.parameters()) else "none needed"
    entry = load_weights(network, weights)
    return network.eval(), f"{weights} ({entry})"


def resolve_restorer(
    target: str,
    scale: int | None,
    gamma: float | None,
    policy: str | None,
    weights: Path | None,
    *,
    threads: int,
    runtime: str | None = None,
    precision: str = "fp32",
) -> "tuple[SRNetwork, str, str]":
    """Return a network of ours or of anybody's for `evaluate`, where its weights are from, and its name.

    `runtime` and `precision`: what runs an ONNX file, and in what.
    """
    from harness.cli.latency import read_conditions
    from harness.profiling import TargetNetwork, load_target, parse_device, run_in

    spec = resolve_target(target, scale, gamma, policy, weights)
    if spec.kind != "onnx" and (runtime is not None or precision != "fp32"):
        raise UserError(f"--runtime and --precision are for ONNX files; {target} is none, and runs in PyTorch in fp32")
    if spec.kind == "model":
        network, origin = resolve_network(target, scale, gamma, policy, weights)
        return network, origin, network.config.label()
    loaded = load_target(spec, threads=threads)
    if scale is not None and scale != loaded.scale:
        raise UserError(f"--scale {scale}: {target} is of scale {loaded.scale}")
    if spec.kind == "onnx":
        conditions = read_conditions("cpu", threads, runtime or "onnxruntime", precision)
        if conditions.runtime not in ("onnxruntime", "openvino"):
            raise UserError(f"--runtime {runtime}: ONNX files are run by onnxruntime or openvino")
        loaded = run_in(loaded, conditions.runtime, conditions.precision, parse_device(conditions.device))
    return TargetNetwork(loaded), loaded.weights, loaded.name


def resolve_target(
    target: str, scale: int | None, gamma: float | None, policy: str | None, weights: Path | None
) -> "TargetSpec":
    """Return what a process needs to load a target: one of our networks, or a network of anybody's."""
    from harness.models import PRESETS
    from harness.profiling import TargetSpec, parse_target

    target = str(only_onnx_file(Path(target)) or target)
    spec = None if target in PRESETS or Path(target).is_dir() else parse_target(target, weights=weights)
    if spec is not None:
        if gamma is not None or policy is not None:
            raise UserError(f"--gamma and --routing: {target} does not route as the networks of this project do")
        return spec
    config = resolve_config(target, scale, gamma, policy)
    if Path(target).is_dir():
        if weights is not None:
            raise UserError(f"--weights {weights}: the bundle {target} has its own")
        weights = Path(target) / "model.safetensors"
    return TargetSpec(
        kind="model", source=target, config=config, weights=None if weights is None else str(weights.resolve())
    )


def only_onnx_file(path: Path) -> Path | None:
    """Return an ONNX file that a path names, or that a folder which is no bundle holds; None where there is none.

    `UserError` for a folder of several, and a file that is not there.
    """
    from harness.export import is_bundle

    if path.suffix == ".onnx" and not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} not found; expected an ONNX file")
        return path
    of_bundles = ("config.json", "model.safetensors", "metrics.json", "parity.json")  # damaged ones too
    is_damaged = any((path / name).is_file() for name in of_bundles)
    files = sorted(path.glob("*.onnx")) if path.is_dir() and not is_bundle(path) and not is_damaged else []
    if len(files) > 1:
        raise UserError(f"{path} holds {len(files)} ONNX files; name one of them, such as {files[0]}")
    return files[0] if files else None


def default_protocol(model: str) -> str:
    """Return the protocol that a target is scored by unless told otherwise: that of the task of a bundle."""
    from harness.export import is_bundle, read_bundle_config
    from harness.metrics import protocol_for

    path = Path(model)
    return protocol_for(read_bundle_config(path).task if is_bundle(path) else "classic")
