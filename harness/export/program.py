"""Files of `torch.export` (.pt2) of networks at inference, with γ and policy built in, checked against their network.

A CAMixerSR keeps height, width and batch free, as long as images are larger than a window on both sides: of those with
one row or column of windows torch.export knows tensors by other strides. All else is exported for one size.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

from harness.core.configs import CAMixerSRConfig
from harness.core.errors import UserError, describe_error
from harness.core.files import atomic_path, require_folder_place
from harness.export.documents import ParityRecord
from harness.export.parity import ParityImage, check_module, take_images
from harness.models import SRNetwork
from harness.models.bicubic import upscale_bicubic
from harness.models.camixersr import CAMixerSR
from harness.models.routing import plan_routing


def export_program(
    network: SRNetwork,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    images: list[ParityImage] | None = None,
) -> ParityRecord:
    """Write a `torch.export` file and return how it compares with the network, as it is loaded again.

    `size` = (height, width) and `batch` (1 beside a size): the only ones that it is to take; None: any, see the module.
    Nothing is written, and `UserError` raised, where the network cannot be exported or the file is not what it is.
    """
    config = network.config
    if size is None and not isinstance(config, CAMixerSRConfig):
        raise UserError(f"{config.label()} is exported to .pt2 for one size: give --size HEIGHTxWIDTH")
    require_folder_place("--out", path.parent)
    window = getattr(config, "window", 16)
    if images is None:
        images = take_images(config.scale, window, size=size, batch=batch or (1 if size is not None else None))
        if size is None:
            images = [image for image in images if min(image.input_BCHW.shape[-2:]) > window]
    module = _Exported(copy.deepcopy(network).cpu().eval())
    dynamic = torch.export.Dim.DYNAMIC
    shapes = None
    if size is None:
        shapes = ({0: dynamic if batch is None else None, 1: None, 2: dynamic, 3: dynamic},)
        example = torch.rand(batch or 2, 3, 2 * window + 5, 3 * window + 7, generator=torch.Generator().manual_seed(0))
    else:
        example = torch.rand(batch or 1, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with _quiet(), torch.no_grad(), _export_config.patch(backed_size_oblivious=True):
            program = torch.export.export(
                module,
                (example,),
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # the exporter raises nearly anything
        raise UserError(f"{config.label()} cannot be exported by torch.export: {describe_error(error)}") from None
    with atomic_path(path) as temporary:
        with _quiet():
            torch.export.save(program, temporary)
            loaded: Any = torch.export.load(temporary).module()
        return check_module(network, loaded, temporary, images)


_export_config: Any = _config


class _Exported(nn.Module):
    """A network as torch.export sees through it: operator by operator, for any size, under one routing."""

    def __init__(self, network: SRNetwork):
        super().__init__()
        network.is_literal = True
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Restore a batch of images."""
        network = self.network
        if not isinstance(network, CAMixerSR):
            restored: Tensor = network.restore(image).image_BCHW
            return restored
        config, (h, w) = network.config, image.shape[-2:]
        M, scale = config.window, config.scale
        padded = image
        for axis, side in ((2, h), (3, w)):
            padded = padded.index_select(axis, _reflect(side, (side + M - 1) // M * M))
        plan = plan_routing(config.routing, padded, (h, w), M, None)
        unread = (block for block in range(config.num_blocks) if not config.reads_predictor(block))
        restored, _ = network._restore_plainly(padded, plan._replace(unread=frozenset(unread)), None)
        for axis, side in ((2, h), (3, w)):  # what a slice would do, of which torch.export asks more
            restored = restored.index_select(axis, torch.arange(side * scale))
        return restored + upscale_bicubic(image, scale) if config.image_residual else restored


def _reflect(side: int, target: int) -> Tensor:
    """Return which pixel each of `target` is, of a line of `side` that is continued by reflection."""
    last = side - 1
    phase = torch.arange(target) % torch.sym_max(2 * last, 1)  # type: ignore[no-untyped-call]
    return torch.minimum(phase, 2 * last - phase)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings to itself: what matters is an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
