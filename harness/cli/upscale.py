"""`harness upscale`: an exported network on image files."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import console, counting
from harness.core.errors import UserError

_MOST_REFUSALS = 10  # that one message names


def upscale(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image file, or a folder of images.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A PNG file, or a folder.")],
    tile: Annotated[int, typer.Option(min=0, help="Tile side for large images in input pixels; 0: never tile.")] = 512,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Overlap of tiles in input pixels.  [default: 32, or half of a smaller tile]"),
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
    """Upscale image files; outputs are PNG and never replaced unless asked to."""
    from harness.core.panorama import require_panorama
    from harness.data.images import read_rgb, write_png
    from harness.export import list_jobs, load_network, read_bundle_config, read_importance, upscale_image
    from harness.metrics import get_protocol
    from harness.models.panorama import wrap_width
    from harness.profiling import chosen_threads

    options.check_tiles(tile or None, overlap)
    network = load_network(bundle)
    if panorama is None:
        panorama = read_bundle_config(bundle).task == "odi"
    wrap = get_protocol("odi").wrap if panorama else 0
    jobs = list_jobs(source, target)
    if importance is not None and source.is_dir():
        raise UserError(f"--importance {importance} lies over one image, but {source} is a folder; give one image")
    taken = [str(path) for _, path in jobs if path.exists()]
    if taken and not overwrite:
        raise UserError(f"{taken[0]} exists; give --overwrite to replace it, or another OUT")
    if wrap or len(jobs) > 1:
        sizes = _read_sizes([path for path, _ in jobs])  # all of them before the first is upscaled
        for path, size in sizes.items() if wrap else ():
            require_panorama(str(path), size, remedy="--no-panorama restores it as a plain image")
    with chosen_threads(options.resolve_threads(threads)):
        for path, output in jobs:
            image_HWC = read_rgb(path)
            importance_HW = None
            if importance is not None:
                importance_HW = read_importance(importance, image_HWC.shape[:2], importance_weight)
            with counting(f"upscaling {path.name}") as progress:
                upscaled_HWC = upscale_image(
                    network,
                    image_HWC,
                    tile=tile or None,
                    overlap=min(32, tile // 2) if overlap is None else overlap,
                    wrap=wrap,
                    importance_HW=importance_HW,
                    progress=progress,
                )
            write_png(output, upscaled_HWC)
            columns, width = wrap_width(network, wrap), image_HWC.shape[1]
            seam = (
                f", continued by {columns} columns at each side of the seam: ×{1 + 2 * columns / width:.3f} of the cost"
            )
            console.print(f"{output}  {upscaled_HWC.shape[1]}×{upscaled_HWC.shape[0]}{seam if wrap else ''}")


def _read_sizes(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """Decode every image and return (height, width) of each; `UserError` names all that cannot be read."""
    from harness.data.images import read_rgb

    sizes: dict[Path, tuple[int, int]] = {}
    refusals = []
    with counting("reading images") as progress:
        for done, path in enumerate(paths, start=1):
            try:
                height, width, _ = read_rgb(path).shape
                sizes[path] = height, width
            except UserError as error:
                refusals.append(str(error))
            progress(done, len(paths))
    if refusals and len(paths) > 1:
        more = f"; and {len(refusals) - _MOST_REFUSALS} more" if len(refusals) > _MOST_REFUSALS else ""
        named = "; ".join(refusals[:_MOST_REFUSALS])
        raise UserError(f"{len(refusals)} of {len(paths)} images cannot be used, so none is upscaled: {named}{more}")
    if refusals:
        raise UserError(refusals[0])
    return sizes
