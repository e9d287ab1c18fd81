"""Networks to measure: what a user names, as a spec that any process can load again, and what each network takes.

A target is one of this project's networks (preset, config file or bundle), or anybody's: what a Python factory returns,
a TorchScript file, a `torch.export` file or an ONNX file. `TargetSpec` is all that loading needs and travels as JSON;
`load_target` loads it. Which images a network of anybody's takes is found by running it: see `find_contract`.
"""

import contextlib
import hashlib
import logging
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.core.configs import FrozenConfig, ModelConfig
from harness.core.errors import UserError, describe_error
from harness.core.factories import FactoryPlace, find_factory
from harness.core.seeding import derive_seed
from harness.models import AnyGenerator, Restoration, SRNetwork, build_seeded, load_plain_weights, load_weights
from harness.models.custom import call_factory, import_factory
from harness.models.padding import pad_to_size
from harness.models.tiling import restore_tiled

TargetKind = Literal["model", "factory", "torchscript", "exported", "onnx"]
Network = Callable[[Tensor], Tensor]

# What a file is, by the end of its name; Python files name a factory besides.
FILE_KINDS: dict[str, TargetKind] = {".pt": "torchscript", ".ts": "torchscript", ".pt2": "exported", ".onnx": "onnx"}
WEIGHT_FILES = (".pth", ".ckpt", ".safetensors")
# Sides with many divisors, small ones first: whatever multiple a network needs up to 64, it divides one of them.
_SIDES = (64, 96, 120, 168, 112, 128, 144, 176, 208, 240, 256, 320, 384, 512)
TILE_OVERLAP = 4  # low-resolution pixels, as in the protocol `large`: of networks that take images of one size alone
_CHANNELS = (3, 1, 4)  # RGB, grey, RGB with alpha or packed Bayer


class InputContract(FrozenConfig):
    """What a network takes and gives: 1×in_channels×h×w in [0, 1] becomes 1×out_channels×(scale·h)×(scale·w).

    h and w are multiples of `height_multiple` and `width_multiple`; `fixed_height` and `fixed_width` are the only ones
    it takes, where it takes one alone. `works_at`: a size that it was run at, `tried`: all of them, (height, width).
    """

    in_channels: int = 3
    out_channels: int = 3
    scale: int
    height_multiple: int = 1
    width_multiple: int = 1
    fixed_height: int | None = None
    fixed_width: int | None = None
    works_at: tuple[int, int] | None = None
    tried: tuple[tuple[int, int], ...] = ()

    def admits(self, size: tuple[int, int]) -> bool:
        """Whether a (height, width) is of the kind that the network takes."""
        height, width = size
        return (
            self.fixed_height in (None, height)
            and self.fixed_width in (None, width)
            and height % self.height_multiple == 0
            and width % self.width_multiple == 0
        )

    def nearest(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the fixed size, or (height, width) rounded up to the multiples that the network needs."""
        height, width = size
        return (
            self.fixed_height or math.ceil(height / self.height_multiple) * self.height_multiple,
            self.fixed_width or math.ceil(width / self.width_multiple) * self.width_multiple,
        )

    def needs(self) -> str:
        """Say what sizes the network takes, as the end of 'needs …'."""
        if self.fixed_height is not None and self.fixed_width is not None:
            return f"exactly {self.fixed_height}×{self.fixed_width} pixels"
        if self.height_multiple == self.width_multiple > 1 and self.fixed_height is self.fixed_width is None:
            return f"height and width that are multiples of {self.height_multiple}"
        sides = (
            ("height", self.fixed_height, self.height_multiple),
            ("width", self.fixed_width, self.width_multiple),
        )
        needs = [
            f"a {side} of exactly {fixed}" if fixed is not None else f"a {side} that is a multiple of {multiple}"
            for side, fixed, multiple in sides
            if fixed is not None or multiple > 1
        ]
        return " and ".join(needs) or "any height and width"


class TargetSpec(FrozenConfig):
    """All that it takes to load a network in any process of this machine; JSON both ways.

    `source` is what the user typed. By `kind`:
    `model`: `config`, and `weights` (a file, absolute) unless it stays as `build_seeded(config, 0)` made it.
    `factory`: attribute `attribute` of module `module`, or of the file `path`, imported with the folder `import_from`
    on the path and called without arguments under seed 0; then `weights`, if any.
    `torchscript`, `exported`, `onnx`: the file `path` (absolute).
    `contract`: what the network takes, once it is known; `load_target` then runs nothing.
    """

    kind: TargetKind
    source: str
    config: ModelConfig | None = None
    weights: str | None = None
    path: str | None = None
    module: str | None = None
    attribute: str | None = None
    import_from: str | None = None
    contract: InputContract | None = None

    def identity(self) -> str:
        """Return a hash of what is measured: of the config, of a file's content, or of what names the factory."""
        if self.config is not None:
            return self.config.config_hash()
        if self.kind != "factory":
            return hashlib.sha256(Path(str(self.path)).read_bytes()).hexdigest()
        return self.model_copy(update={"contract": None}).config_hash()


@dataclass(frozen=True)
class Target:
    """A loaded network on the CPU in eval mode; `spec.contract` is known. `weights` says where they are from."""

    spec: TargetSpec
    network: Network
    contract: InputContract
    weights: str

    @property
    def name(self) -> str:
        """The label of its config, else what the user typed."""
        return self.spec.source if self.spec.config is None else self.spec.config.label()

    @property
    def module(self) -> nn.Module | None:
        """The network where PyTorch runs it, for counters; None for ONNX."""
        if self.spec.kind == "exported":
            return self.network.network  # type: ignore[attr-defined, no-any-return]
        return self.network if isinstance(self.network, nn.Module) else None

    @property
    def scale(self) -> int:
        """The upscaling factor."""
        return self.contract.scale

    @property
    def in_channels(self) -> int:
        """The number of channels of its input."""
        return self.contract.in_channels

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise `UserError`, saying what the network needs, where it does not take images of this (height, width).

        A network of anybody's is run once at the size.
        """
        if self.spec.kind != "model":
            _check_size(self, size)


class TargetNetwork(SRNetwork):
    """A target as a network that restores images of any size up to `tile`, for `evaluate`.

    Images are continued by reflection to what the contract needs and cut off again, and restored one after the other
    where the network takes one at a time. `tile`: the side of the largest images that it takes, None where that has no
    end. `UserError` where the network does not restore RGB.
    """

    config = None  # type: ignore[assignment]  # of anybody's: it has none

    def __init__(self, target: Target):
        super().__init__()
        contract = target.contract
        if (contract.in_channels, contract.out_channels) != (3, 3):
            raise UserError(
                f"{target.name} makes {contract.out_channels} channels of {contract.in_channels}; expected RGB of RGB"
            )
        self.target = target
        self.module = target.network if isinstance(target.network, nn.Module) else None  # moves with this one
        sides = [side for side in (contract.fixed_height, contract.fixed_width) if side is not None]
        self.tile = min(sides, default=None)
        self.eval()

    @property
    def scale(self) -> int:
        """The upscaling factor."""
        return self.target.scale

    def restore(self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None) -> Restoration:
        """Restore a batch; nothing is random, and nothing routes that could be told."""
        height, width = input_BCHW.shape[-2:]
        needed = self.target.contract.nearest((height, width))
        if needed[0] < height or needed[1] < width:
            raise UserError(
                f"{self.target.name} needs {self.target.contract.needs()}; got {height}×{width}; give tiles"
            )
        padded_BCHW = pad_to_size(input_BCHW, needed)
        restored_BCHW = torch.cat([self.target.network(image_BCHW) for image_BCHW in torch.split(padded_BCHW, 1)])
        image_BCHW = restored_BCHW[..., : height * self.scale, : width * self.scale]
        return Restoration(image_BCHW, input_BCHW.new_zeros(0, len(input_BCHW)))


def fit_to(target: Target, size: tuple[int, int]) -> Network:
    """Return the network as it restores images of a (height, width): in tiles where it takes those of another alone.

    Tiles overlap by `TILE_OVERLAP`; smaller images are continued, as `TargetNetwork` does.
    """
    if target.contract.admits(size):
        return target.network
    restorer = TargetNetwork(target)
    tile = restorer.tile
    assert tile is not None, f"{target.name} needs {target.contract.needs()}"
    return lambda input_BCHW: restore_tiled(restorer, input_BCHW, tile=tile, overlap=TILE_OVERLAP).image_BCHW


def parse_target(text: str, *, weights: Path | None = None) -> TargetSpec | None:
    """Read what names a network of anybody's; None where the text names none.

    `MODULE:FACTORY`, `FILE.py:FACTORY`, `FILE.pt` and `FILE.ts` (TorchScript), `FILE.pt2`, `FILE.onnx`.
    Raises `UserError` for a file that is not there or holds weights alone, and for weights beside a file that has its
    own.
    """
    path = Path(text)
    file, _, attribute = text.rpartition(":")
    if file and attribute and not path.exists():
        return _factory_spec(text, weights)
    if path.suffix == ".py":
        raise UserError(f"{text}: expected {text}:FACTORY, a function of the file that returns the network")
    if path.suffix in WEIGHT_FILES:
        raise UserError(
            f"{text}: a {path.suffix} file holds weights alone; name their network, and give --weights {text}"
        )
    kind = FILE_KINDS.get(path.suffix)
    if kind is None or path.is_dir():
        return None
    if not path.is_file():
        raise UserError(f"{text} not found; expected a file of kind {_KIND_NAMES[kind]}")
    if weights is not None:
        raise UserError(f"--weights {weights}: the {_KIND_NAMES[kind]} file {text} has its own")
    return TargetSpec(kind=kind, source=text, path=str(path.resolve()))


def load_target(spec: TargetSpec, *, threads: int = 1) -> Target:
    """Load the network of a spec, on the CPU and in eval mode; the global generators are left as they were.

    `threads`: of onnxruntime, whose sessions fix them when they are made; PyTorch is left as it is. Where the spec has
    no contract, the network is run at a few small sizes to find it.
    Raises `UserError` for whatever the user can mend: a module or attribute that is not there, a factory that raises or
    returns no `nn.Module`, a file that is not what its name says, onnxruntime that is not installed, a network that
    runs at no size or gives no batch of images.
    """
    network = _LOADERS[spec.kind](spec, threads)
    contract = spec.contract or _known_contract(network) or find_contract(network, spec.source)
    return Target(spec.model_copy(update={"contract": contract}), network, contract, _describe_weights(spec, network))


def find_contract(network: Network, name: str) -> InputContract:
    """Run a network to find out which images it takes.

    Channels and scale come from the first of a few sizes that it runs at, S×S. If it needs multiples of r, r divides S;
    and for a divisor d of S, S + d is a multiple of r only if d is. So r is the least d for which S + d works, found
    for height and width apart. Where even 2S fails, S is taken for the only side that works.
    """
    declared = getattr(network, "declared_input", None)
    tried: list[tuple[int, int]] = []
    channels, (height, width), (out_channels, scale) = _find_working_size(network, name, declared, tried)

    def works(size: tuple[int, int]) -> bool:
        tried.append(size)
        try:
            return _restored_shape(network, name, channels, size) == (out_channels, scale)
        except _MisfitError:
            return False

    height_multiple = next((d for d in _divisors(height) if works((height + d, width))), None)
    width_multiple = next((d for d in _divisors(width) if works((height, width + d))), None)
    return InputContract(
        in_channels=channels,
        out_channels=out_channels,
        scale=scale,
        height_multiple=height_multiple or 1,
        width_multiple=width_multiple or 1,
        fixed_height=None if height_multiple else height,
        fixed_width=None if width_multiple else width,
        works_at=(height, width),
        tried=tuple(dict.fromkeys(tried)),
    )


class _MisfitError(Exception):
    """A network does not take images of a size (or of so many channels)."""


_KIND_NAMES: dict[TargetKind, str] = {"torchscript": "TorchScript", "exported": "torch.export", "onnx": "ONNX"}


def _factory_spec(text: str, weights: Path | None) -> TargetSpec:
    place = find_factory(text)
    return TargetSpec(
        kind="factory",
        source=text,
        path=None if place.path is None else str(place.path),
        module=place.module,
        attribute=place.attribute,
        import_from=str(place.import_from),
        weights=None if weights is None else str(weights.resolve()),
    )


def _load_model(spec: TargetSpec, _threads: int) -> Network:
    assert spec.config is not None
    network = build_seeded(spec.config, seed=0)
    if spec.weights is not None:
        load_weights(network, Path(spec.weights))
    return network.eval()


def _load_factory(spec: TargetSpec, _threads: int) -> Network:
    assert spec.attribute is not None
    assert spec.import_from is not None
    path = None if spec.path is None else Path(spec.path)
    place = FactoryPlace(spec.attribute, path, spec.module, Path(spec.import_from))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(0, "weights"))
        # The command's standard output is one JSON document; whatever the user's code prints goes beside it.
        with contextlib.redirect_stdout(sys.stderr):
            network = call_factory(import_factory(place, spec.source), spec.source, {})
    if spec.weights is not None:
        load_plain_weights(network, Path(spec.weights), spec.source)
    return network.eval()


def _load_torchscript(spec: TargetSpec, _threads: int) -> Network:
    assert spec.path is not None
    try:
        network: nn.Module = torch.jit.load(spec.path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # a zip without its parts, a pickle, a constant of another version, …
        raise UserError(
            f"{spec.source}: no TorchScript file as torch.jit.save writes them ({describe_error(error)}); "
            "weights go with a factory and --weights"
        ) from None
    return network.eval()


def _load_exported(spec: TargetSpec, _threads: int) -> Network:
    from harness.profiling.exported import ExportedNetwork

    assert spec.path is not None
    loader_log = logging.getLogger("torch.export")  # tells the traceback of what it then raises
    level = loader_log.level
    try:
        loader_log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ExportedNetwork(torch.export.load(spec.path)).eval()
    except Exception as error:
        raise UserError(
            f"{spec.source}: no torch.export file as torch.export.save writes them ({describe_error(error)})"
        ) from None
    finally:
        loader_log.setLevel(level)


def _load_onnx(spec: TargetSpec, threads: int) -> Network:
    from harness.profiling.onnx_session import OnnxNetwork

    assert spec.path is not None
    return OnnxNetwork(spec.path, spec.source, threads)


_LOADERS: dict[TargetKind, Callable[[TargetSpec, int], Network]] = {
    "model": _load_model,
    "factory": _load_factory,
    "torchscript": _load_torchscript,
    "exported": _load_exported,
    "onnx": _load_onnx,
}


def _known_contract(network: Network) -> InputContract | None:
    """Return the contract of one of our own networks, which take any size."""
    return InputContract(scale=network.scale) if isinstance(network, SRNetwork) else None


def _describe_weights(spec: TargetSpec, network: Network) -> str:
    if spec.weights is not None:
        return spec.weights
    if spec.kind in _KIND_NAMES:
        return spec.source
    if isinstance(network, nn.Module) and not any(True for _ in network.parameters()):
        return "none needed"
    return "untrained" if spec.kind == "model" else "as the factory made them"


def _find_working_size(
    network: Network, name: str, declared: tuple[int | None, ...] | None, tried: list[tuple[int, int]]
) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Return the channels and the size of the first images that the network takes, and its output channels and scale.

    `declared`: batch, channels, height and width as far as a file states them.
    """
    batch, known_channels, known_height, known_width = declared or (None, None, None, None)
    if batch not in (None, 1):
        raise UserError(f"{name} takes batches of {batch} images only; expected one that takes 1 (or any number)")
    channel_choices = (known_channels,) if known_channels is not None else _channel_choices(network)
    sides = (_SIDES[0],) if known_height is not None and known_width is not None else _SIDES
    first_reason = ""
    for side in sides:
        size = (known_height or side, known_width or side)
        tried.append(size)
        for channels in channel_choices:
            try:
                return channels, size, _restored_shape(network, name, channels, size)
            except _MisfitError as misfit:
                first_reason = first_reason or f"with {channels} channels at {size[0]}×{size[1]} {misfit}"
    counts = ", ".join(map(str, channel_choices))
    raise UserError(f"{name} runs at no size (tried {_list_sizes(tried)}; {counts} channels); {first_reason}")


def _channel_choices(network: Network) -> tuple[int, ...]:
    first = None
    if isinstance(network, nn.Module):
        first = next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return tuple(dict.fromkeys((*_CHANNELS, *([] if first is None else [first]))))


def _restored_shape(network: Network, name: str, channels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Run the network on one image of noise; return its output channels and scale.

    Raises `_MisfitError` where it fails or gives no whole multiple of the size, `UserError` where it gives no images.
    """
    height, width = size
    image_BCHW = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            output: Any = network(image_BCHW)
    except Exception as error:
        raise _MisfitError(f"it fails: {describe_error(error)}") from None
    if not isinstance(output, Tensor):
        raise UserError(f"{name} returns a {type(output).__name__}; expected a tensor, B×C×(scale·h)×(scale·w)")
    if output.dim() != 4 or output.shape[0] != 1 or not output.is_floating_point():
        raise UserError(
            f"{name} returns a {output.dtype} tensor of shape {tuple(output.shape)} for 1×{channels}×{height}×{width}; "
            "expected a batch of images, B×C×(scale·h)×(scale·w)"
        )
    scale = output.shape[-1] // width
    if scale < 1 or output.shape[-2:] != (scale * height, scale * width):
        raise _MisfitError(f"it gives {output.shape[-2]}×{output.shape[-1]} pixels, no whole multiple of the input")
    return output.shape[1], scale


def _check_size(target: Target, size: tuple[int, int]) -> None:
    contract = target.contract
    got = f"got {size[0]}×{size[1]}"
    if not contract.admits(size):
        height, width = contract.nearest(size)
        raise UserError(
            f"{target.name} needs {contract.needs()} (tried {_list_sizes(contract.tried)}); {got}; "
            f"give --input-size {height} {width}"
        )
    try:
        _restored_shape(target.network, target.name, contract.in_channels, size)
    except _MisfitError as misfit:
        least, tried = _least_size(target, size)
        raise UserError(
            f"{target.name} needs height and width of at least {least[0]}×{least[1]}, "
            f"in steps of {contract.height_multiple}×{contract.width_multiple} (tried {_list_sizes(tried)}); {got}: "
            f"{misfit}"
            if least[0] > size[0] or least[1] > size[1]
            else f"{target.name} does not take every size: {got}, where {misfit}; it runs at {least[0]}×{least[1]}"
        ) from None


def _least_size(target: Target, size: tuple[int, int]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return the least size above `size`, in the steps of the contract, that the network takes, and what was tried.

    Found by halving the way from `size`, which fails, to one that works; where `size` is no smaller, that is returned.
    """
    contract = target.contract
    assert contract.works_at is not None
    rows, columns = contract.height_multiple, contract.width_multiple
    steps = max((contract.works_at[0] - size[0]) // rows, (contract.works_at[1] - size[1]) // columns)
    tried = [size]

    def after(step: int) -> tuple[int, int]:
        assert contract.works_at is not None
        return (
            max(size[0], min(size[0] + step * rows, contract.works_at[0])),
            max(size[1], min(size[1] + step * columns, contract.works_at[1])),
        )

    if steps < 1:
        return contract.works_at, tried
    failing, working = 0, steps
    while working - failing > 1:
        middle = (failing + working) // 2
        tried.append(after(middle))
        try:
            _restored_shape(target.network, target.name, contract.in_channels, after(middle))
            working = middle
        except _MisfitError:
            failing = middle
    return after(working), tried


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _list_sizes(sizes: Any) -> str:
    """List sizes, the middle left out where there are many."""
    texts = [f"{height}×{width}" for height, width in dict.fromkeys(sizes)]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:5], "…", *texts[-2:]])
