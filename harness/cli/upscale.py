"""`harness upscale`: an exported network on image files."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from harness.cli import options
from harness.cli.output import console, counting, messages
from harness.core.errors import OutageError, UserError

if TYPE_CHECKING:
    from harness.models import SRNetwork

_OVERLAP = 32  # low-resolution pixels
_FIXED_SHARE = 8  # of the side of a file's fixed size, by which its tiles overlap


class RuntimeName(StrEnum):
    """What runs a network here."""

    EAGER = "eager"
    ONNXRUNTIME = "onnxruntime"


class FormatName(StrEnum):
    """What images are written as."""

    PNG = "png"
    JPG = "jpg"
    WEBP = "webp"
    TIFF = "tiff"


class _Restorer(NamedTuple):
    """A network to upscale with; `tile`: the side of the largest images that it takes, None for any."""

    network: "SRNetwork"
    is_eager: bool
    is_for_panoramas: bool = False
    window: int = 1
    tile: int | None = None


def upscale(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE", help="A bundle's folder, an ONNX file, or the folder of one, as `quantise` makes it."
        ),
    ],
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="An image file, or a folder of images and of folders of them.")
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A file (.png, .jpg, .webp, .tif), or a folder, which gets IN's folders."),
    ],
    runtime: Annotated[
        RuntimeName | None,
        typer.Option(help="What runs the network.  [default: eager; onnxruntime for ONNX files]"),
    ] = None,
    tile: Annotated[int, typer.Option(min=0, help="Tile side for large images in input pixels; 0: never tile.")] = 512,
    overlap: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Overlap of tiles in input pixels.  [default: 32, or half of a smaller tile; an eighth of the size of "
            "an ONNX file that takes one size]",
        ),
    ] = None,
    format: Annotated[  # noqa: A002 (the option's name)
        FormatName | None, typer.Option(help="What outputs in a folder are.  [default: png]")
    ] = None,
    panorama: Annotated[
        bool | None,
        typer.Option(help="Images are panoramas: restore them without a seam.  [default: as the bundle was trained]"),
    ] = None,
    importance: Annotated[
        Path | None,
        typer.Option(help="A grey image or a .npy array over IN: where it is bright or high, attention goes first."),
    ] = None,
    importance_weight: Annotated[
        float,
        typer.Option(
            min=0, help="What white, or 1 in an array, adds to the ranking of windows (logits differ by 1 to 10)."
        ),
    ] = 10.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    threads: options.Threads = None,
) -> None:
    """Upscale image files; what is there is replaced only if asked for.

    Grey stays grey, transparency is upscaled bicubically, colour profile and EXIF are kept, and pixels are turned
    upright. Of a folder, images that cannot be read are named and left out, with exit code 2 in the end.
    """
    from harness.core.panorama import require_panorama
    from harness.data.pictures import read_picture, read_size, write_picture
    from harness.export import list_jobs, read_importance, upscale_picture
    from harness.metrics import get_protocol
    from harness.profiling import chosen_threads

    options.check_tiles(tile or None, overlap)
    workers = options.resolve_threads(threads)
    restorer = _open(model, runtime, workers)
    if importance is not None and not restorer.is_eager:
        raise UserError(f"--importance {importance}: maps guide networks that run in eager; expected a bundle, eager")
    if panorama is None:
        panorama = restorer.is_for_panoramas
    columns = get_protocol("odi").wrap if panorama else 0
    columns = -(-columns // restorer.window) * restorer.window  # whole windows
    if restorer.tile is not None and not 0 < tile <= restorer.tile:
        tile = restorer.tile
    if overlap is None:
        overlap = tile // _FIXED_SHARE if restorer.tile is not None else min(_OVERLAP, tile // 2)
    elif tile and overlap >= tile:
        raise UserError(f"--overlap {overlap}: {model} takes images of {tile}×{tile}; expected less")
    jobs = list_jobs(source, target, f".{(format or FormatName.PNG).value}")
    if format is not None and len(jobs) == 1 and jobs[0][1] == target:
        raise UserError(f"--format {format.value}: {target} says by its name what it is; expected a folder, or neither")
    if importance is not None and source.is_dir():
        raise UserError(f"--importance {importance} lies over one image, but {source} is a folder; give one image")
    taken = [str(path) for _, path in jobs if path.exists()]
    if taken and not overwrite:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise UserError(f"{taken[0]} exists{more}; give --overwrite to replace it, or another OUT")
    if columns:
        for path, _ in jobs:  # all of them before the first is upscaled
            if (size := read_size(path)) is not None:
                require_panorama(str(path), size, remedy="--no-panorama restores it as a plain image")
    failed = 0
    with chosen_threads(workers):
        for number, (path, output) in enumerate(jobs, start=1):
            try:
                picture = read_picture(path)
                height, width = picture.colour_HWC.shape[:2]
                importance_HW = None
                if importance is not None:
                    importance_HW = read_importance(importance, (height, width), importance_weight)
                of_all = f" ({number} of {len(jobs)})" if len(jobs) > 1 else ""
                with counting(f"upscaling {path.name}{of_all}") as progress:
                    made = upscale_picture(
                        restorer.network,
                        picture,
                        tile=tile or None,
                        overlap=overlap,
                        wrap=columns,
                        importance_HW=importance_HW,
                        progress=progress,
                    )
                write_picture(output, made)
            except OutageError:  # no room on the disk: the next one would meet it as well
                raise
            except UserError as error:
                if len(jobs) == 1:
                    raise
                failed += 1
                messages.print(f"left out: {' '.join(str(error).split())}", markup=False, soft_wrap=True)
                continue
            seam = (
                f", continued by {columns} columns at each side of the seam: ×{1 + 2 * columns / width:.3f} of the cost"
            )
            made_height, made_width = made.colour_HWC.shape[:2]
            console.print(
                f"{output}  {made_width}×{made_height}{seam if columns else ''}", markup=False, soft_wrap=True
            )
    if failed:
        raise UserError(f"{failed} of {len(jobs)} images were left out, the others are done; mend or remove them")


def _open(model: Path, runtime: RuntimeName | None, threads: int) -> _Restorer:
    """Load a bundle's network in the runtime, or anybody's ONNX file."""
    from harness.cli.target import only_onnx_file
    from harness.export import is_bundle, load_network, onnx_file, read_bundle_config
    from harness.profiling import InputContract, TargetNetwork, TargetSpec, load_target

    file = only_onnx_file(model)
    if file is not None:
        if runtime == RuntimeName.EAGER:
            raise UserError(f"--runtime eager: {file} is an ONNX file; expected onnxruntime, or a bundle")
        found = load_target(TargetSpec(kind="onnx", source=str(file), path=str(file.resolve())), threads=threads)
        restorer = TargetNetwork(found)
        return _Restorer(restorer, is_eager=False, tile=restorer.tile)
    if runtime == RuntimeName.ONNXRUNTIME and is_bundle(model):
        file, contract = onnx_file(model), InputContract(scale=read_bundle_config(model).model.scale)
        spec = TargetSpec(kind="onnx", source=str(file), path=str(file.resolve()), contract=contract)
        network: SRNetwork = TargetNetwork(load_target(spec, threads=threads))
    else:
        network = load_network(model)
    config = read_bundle_config(model)
    return _Restorer(
        network,
        is_eager=runtime != RuntimeName.ONNXRUNTIME,
        is_for_panoramas=config.task == "odi",
        window=getattr(config.model, "window", 1),
    )
