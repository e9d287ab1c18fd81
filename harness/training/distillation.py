"""Learning from a teacher: what a trained network makes of the same patches, and where its features are like ours.

Neither kind of features asks how many channels a network has, what family it is of or how many groups it has, and none
has parameters: nothing of it is in the trained network, or in its checkpoint.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.configs import DistillationConfig, Features
from harness.core.errors import UserError
from harness.models import SRNetwork, keep_features

_TILE = 16  # places a side between which affinities are compared: all of a patch would take the square of its area


class Lesson(NamedTuple):
    """What a teacher makes of a batch, as far as it counts, and how much: its output in float32, and its features.

    `features`: one map (B×H×W×C) for each group, `size` = (h, w) of them without padding.
    """

    image_BCHW: Tensor | None
    features: Sequence[Tensor]
    size: tuple[int, int]
    config: DistillationConfig

    def compare(self, own: Sequence[Tensor]) -> Tensor:
        """Return the distance of the features of whoever learns from the teacher's; see `feature_loss`."""
        return feature_loss(own, self.features, self.size, self.config.features)


class Teacher:
    """A trained network that another one learns from: in eval mode, under its own routing, without gradients.

    `UserError` for one of another scale.
    """

    def __init__(self, network: SRNetwork, config: DistillationConfig, student: SRNetwork, device: torch.device):
        if network.scale != student.scale:
            raise UserError(
                f"teacher {config.teacher} is of scale {network.scale}, but the network that learns from it of "
                f"{student.scale}; expected the same; give another teacher"
            )
        self.network = network.to(device).eval().requires_grad_(False)
        self.config = config

    def teach(self, low_BCHW: Tensor) -> Lesson | None:
        """Return what is to be learnt of a batch, computed in the precision of the training; None if nothing is."""
        config = self.config
        if not (config.follows_output or config.follows_features):
            return None
        with torch.no_grad(), keep_features(self.network, wanted=config.follows_features) as features:
            image_BCHW = self.network.restore(low_BCHW).image_BCHW.float()
        h, w = low_BCHW.shape[-2:]
        return Lesson(image_BCHW if config.follows_output else None, features, (h, w), config)


def keep_own(student: SRNetwork, config: DistillationConfig | None) -> contextlib.AbstractContextManager[list[Tensor]]:
    """Keep the features of whoever learns, where they are to be compared with its teacher's."""
    return keep_features(student, wanted=config is not None and config.follows_features)


def feature_loss(own: Sequence[Tensor], taught: Sequence[Tensor], size: tuple[int, int], kind: Features) -> Tensor:
    """Return the mean distance of the features of two networks (B×H×W×C each, of any C and padding), in float32.

    Of `size` = (h, w), the image's own places, alone. `attention`: `attention_distance`; `affinity`:
    `affinity_distance`. Each group of `own` is compared with the teacher's at the same share of its depth.
    """
    h, w = size
    distance = attention_distance if kind == "attention" else affinity_distance
    distances = [
        distance(own[index][:, :h, :w].float(), taught[place][:, :h, :w].float())
        for index, place in enumerate(match_depths(len(own), len(taught)))
    ]
    return torch.stack(distances).mean()


def match_depths(own: int, taught: int) -> tuple[int, ...]:
    """Return for each of our groups, from 0, the teacher's that ends nearest to the same share of the depth.

    Halves are rounded down, so that the last goes with the last and nobody looks further ahead than needed.
    """
    return tuple(max(-(-(2 * (index + 1) * taught - own) // (2 * own)), 1) - 1 for index in range(own))


def attention_distance(own_BHWC: Tensor, taught_BHWC: Tensor) -> Tensor:
    """Return ‖q − q′‖², the mean over images, in [0, 2], of two networks' maps of energy.

    q: the mean over channels of the squared features, all places of an image as one vector of length 1 (attention
    transfer, Zagoruyko and Komodakis 2017, there without the square).
    """
    own_BL, taught_BL = (F.normalize(x.square().mean(dim=-1).flatten(1), dim=1) for x in (own_BHWC, taught_BHWC))
    return (own_BL - taught_BL).square().sum(dim=1).mean()


def affinity_distance(own_BHWC: Tensor, taught_BHWC: Tensor) -> Tensor:
    """Return the mean absolute difference, in [0, 2], of how alike two networks find each two places of an image.

    Alike: the cosine between the features of the two places (spatial affinity, He et al. 2020, FAKD, there between all
    places; here between those of the same tile of 16×16).
    """
    differences, pairs = [], 0
    for own, taught in zip(_tiles(own_BHWC), _tiles(taught_BHWC), strict=True):
        own_BLL, taught_BLL = (unit @ unit.mT for unit in (F.normalize(x, dim=-1) for x in (own, taught)))
        differences.append((own_BLL - taught_BLL).abs().sum())
        pairs += own_BLL.numel()
    return torch.stack(differences).sum() / pairs


def _tiles(x_BHWC: Tensor) -> list[Tensor]:
    """Return the tiles of a map, each as B×L×C; those at right and bottom may be smaller."""
    rows_BMWC = torch.split(x_BHWC, _TILE, dim=1)
    return [tile.flatten(1, 2) for rows in rows_BMWC for tile in torch.split(rows, _TILE, dim=2)]
