"""What the networks of a study make of images: crops side by side, and which windows got attention.

Networks are restored from the weights that the study kept; where something is missing, the pictures say what and why.
Shape suffixes: H W sides in pixels, C = 3 channels (RGB), S blocks, N windows.
"""

import base64
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.core.device_lock import computing
from harness.core.errors import TrialFailedError, UserError
from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder
from harness.core.urls import is_url
from harness.metrics import get_protocol, metric_label
from harness.reporting.answer import answer
from harness.reporting.front import study_front
from harness.reporting.picks import pick
from harness.reporting.study import Point, Study

if TYPE_CHECKING:
    from harness.data import ImagePair, PairedDataset

MOST_IMAGES = 2
MOST_SECONDS = 60.0  # after which no further network is restored
MOST_LR_PIXELS = 160 * 160  # of larger images a part is restored
REGION = 256  # high-resolution pixels on a side that can be moved about in
CROP = 96  # and those that are seen first
_OVERVIEW = 480  # pixels of the long side
_PICKS = {"knee": "knee", "best-psnr": "best score", "fastest": "fastest"}

Image = npt.NDArray[np.uint8]


class Tile(NamedTuple):
    """One restoration of the region: `png` as a data URI, PSNR of the luma in the crop, and of the image as scored."""

    name: str
    role: str
    png: str
    crop_psnr_db: float | None
    image_psnr_db: float | None


class AttentionMap(NamedTuple):
    """Where a network attends at one routing: `masks` of each block, a sign for each window, row by row.

    `chosen` is the routing of the point that the network is shown for.
    """

    name: str
    gamma: float | None
    routing: str
    window: int
    size: tuple[int, int]
    masks: tuple[str, ...]
    share: float
    chosen: str


@dataclass(frozen=True)
class Picture:
    """One image. `box`: left, top and side of the region in it; `crop`: those of what is seen first, in the region."""

    name: str
    overview: str
    size: tuple[int, int]
    lr_size: tuple[int, int]
    box: tuple[int, int, int]
    crop: tuple[int, int, int]
    is_part: bool
    tiles: tuple[Tile, ...]
    maps: tuple[AttentionMap, ...]


@dataclass(frozen=True)
class Pictures:
    """All pictures of a study; `notes` say what is not among them, and why."""

    images: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    dataset: str = ""
    image_metric: str = ""
    seconds: float = field(default=0.0, compare=False)


class _Network(NamedTuple):
    """A network that is restored, under the role that it was chosen for."""

    point: Point
    name: str
    role: str


def make_pictures(
    study: Study, folder: StudyFolder, cache_dir: Path, dataset: "PairedDataset | None" = None
) -> Pictures:
    """Restore images of the validation set by the networks that a reader looks for, the baselines beside them.

    `dataset` is the study's validation images, where they are open already. At most `MOST_IMAGES` images, and no
    further network once `MOST_SECONDS` are over. Raises nothing for what is missing: `notes` say it.
    """
    started = time.monotonic()
    chosen = _choose(study)
    if not chosen:
        return Pictures(notes=("No network is on the front, so there is nothing to be seen.",))
    notes = []
    able = []
    for network in chosen:
        if network.point.record.training is None or folder.weights_file(network.point.record.network_id).is_file():
            able.append(network)
        else:
            notes.append(f"{network.name} is left out: its weights are not in the study's folder.")
    if not any(network.point.record.kind == "trial" for network in able):
        return Pictures(notes=("No images: the weights of the networks are not in the study's folder.",))
    try:
        images = dataset or _open_images(study, cache_dir)
        _check_images(study, images)
        with_scores = {network.point.record.record_id: _read(folder, network.point.record) for network in able}
        pictures: list[Picture] = []
        for index in _choose_images(study, images, [with_scores[one.point.record.record_id] for one in able]):
            left = MOST_SECONDS - (time.monotonic() - started)
            if pictures and left < (MOST_SECONDS - left) / len(pictures):
                notes.append(f"Further images are left out: restoring took {MOST_SECONDS - left:.0f} s by then.")
                break
            pictures.append(_Painter(study, folder, able, with_scores, notes, started).paint(images[index]))
    except (UserError, TrialFailedError) as error:
        return Pictures(notes=(*notes, f"No images: {error}."))
    if study.baseline("swinir-light") is None:
        notes.append("SwinIR-light is not among them: it was not trained in this study.")
    metric = f"{metric_label('psnr_db', study.record.protocol, unit=False)}, protocol {study.record.protocol}"
    return Pictures(tuple(pictures), tuple(dict.fromkeys(notes)), images.name, metric, time.monotonic() - started)


def _choose(study: Study) -> list[_Network]:
    """Return the networks to look at, from the plainest to the best: bicubic, SwinIR-light, then the picks."""
    front = study_front(study)
    if front.knee is None:
        return []
    roles: dict[int, tuple[Point, list[str]]] = {}

    def add(point: Point, role: str) -> None:
        if point.measured.quantised is not None:  # its file is the same network, which is shown by its weights
            point, role = _in_float(study, point), f"{role}, in float"
        roles.setdefault(id(point.measured), (point, []))[1].append(role)

    for how, role in _PICKS.items():
        try:
            add(pick(study, how), role)
        except UserError:  # a study without latencies has no fastest point
            continue
    named = answer(study).point
    if named is not None:
        add(named, "the answer")
    found = []
    for name, label in (("bicubic", "bicubic"), ("swinir-light", "SwinIR-light")):
        baseline = study.baseline(name)  # type: ignore[arg-type]
        if baseline is not None:
            found.append(_Network(baseline, label, "baseline"))
    by_quality = sorted(roles.values(), key=lambda entry: entry[0].measured.evaluation.psnr_db)
    found += [_Network(point, point.label, ", ".join(dict.fromkeys(words))) for point, words in by_quality]
    return found


def _in_float(study: Study, point: Point) -> Point:
    same = (one for one in study.all_points if one.record is point.record and one.measured.quantised is None)
    return next((one for one in same if one.measured.routing == point.measured.routing), point)


def _open_images(study: Study, cache_dir: Path) -> "PairedDataset":
    from harness.data import open_dataset

    data = study.record.data
    if is_url(data.validation):
        raise UserError("the validation images are at a URL, which reports do not read")
    return open_dataset(
        data.validation,
        scale=study.record.scale,
        split="validation",
        data_dir=Path(data.data_dir) if data.data_dir else None,
        cache_dir=cache_dir,
    )


def _check_images(study: Study, images: "PairedDataset") -> None:
    scored = next((point.measured.evaluation.dataset_hash for point in study.points), images.content_hash)
    if scored != images.content_hash:
        raise UserError(f"the images of {images.name!r} are not those any more that the networks were scored on")


def _read(folder: StudyFolder, record: TrialRecord) -> TrialRecord:
    """Read a record in full, with the scores of single images."""
    return record if record.kind == "baseline" else folder.read_trial(record.record_id)


def _choose_images(study: Study, images: "PairedDataset", records: Sequence[TrialRecord]) -> list[int]:
    """Return the images whose scores differ most between the networks; the first ones where no scores are known."""
    scores: dict[str, list[float]] = {}
    for record in records:
        for point in record.points[:1]:
            for image in point.evaluation.images:
                scores.setdefault(image.name, []).append(image.psnr_db)
    names = study.record.validation_images
    if len(names) != len(images):
        return list(range(min(MOST_IMAGES, len(images))))
    spans = [max(scores.get(name, [0.0])) - min(scores.get(name, [0.0])) for name in names]
    order = sorted(range(len(images)), key=lambda index: (-spans[index], index))
    return sorted(order[:MOST_IMAGES])


class _Painter:
    """Makes the picture of one image after the other."""

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        networks: Sequence[_Network],
        records: dict[str, TrialRecord],
        notes: list[str],
        started: float,
    ):
        self.study, self.folder, self.networks, self.records = study, folder, networks, records
        self.notes, self.started = notes, started
        self.protocol = get_protocol(study.record.protocol)

    def paint(self, pair: "ImagePair") -> Picture:
        """Restore an image, or the part of it that holds most detail, by every network."""
        scale = self.study.record.scale
        top, left, height, width = _find_part(pair.lr_HWC)
        is_part = (height, width) != pair.lr_HWC.shape[:2]
        lr_HWC = pair.lr_HWC[top : top + height, left : left + width]
        inside = slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale)
        hr_HWC = np.ascontiguousarray(pair.hr_HWC[inside])
        restored: dict[int, Image] = {}
        for network, image_HWC in self._restore_all(lr_HWC, is_part):
            restored[id(network)] = image_HWC
        region = min(REGION, *hr_HWC.shape[:2])
        side = min(CROP, region)
        y, x = _find_crop([*restored.values(), hr_HWC], side)
        from_y = _clamp(y + side // 2 - region // 2, hr_HWC.shape[0] - region)
        from_x = _clamp(x + side // 2 - region // 2, hr_HWC.shape[1] - region)
        tiles = []
        for network in self.networks:
            if id(network) not in restored:
                continue
            image_HWC = restored[id(network)]
            crops = (one[y : y + side, x : x + side] for one in (image_HWC, hr_HWC))
            tiles.append(
                Tile(
                    name=network.name,
                    role=network.role,
                    png=_encode(image_HWC[from_y : from_y + region, from_x : from_x + region]),
                    crop_psnr_db=_psnr_of_luma(*crops),
                    image_psnr_db=self._score_of(network, pair.name),
                )
            )
        tiles.append(
            Tile(
                "HR", "the photograph", _encode(hr_HWC[from_y : from_y + region, from_x : from_x + region]), None, None
            )
        )
        return Picture(
            name=pair.name,
            overview=_encode_overview(hr_HWC),
            size=(hr_HWC.shape[0], hr_HWC.shape[1]),
            lr_size=(height, width),
            box=(from_x, from_y, region),
            crop=(x - from_x, y - from_y, side),
            is_part=is_part,
            tiles=tuple(tiles),
            maps=tuple(self._map_attention(lr_HWC)),
        )

    def _restore_all(self, lr_HWC: Image, is_part: bool) -> Iterator[tuple[_Network, Image]]:
        import torch

        from harness.data import to_tensor
        from harness.models.panorama import restore_image, wrap_width
        from harness.trial import load_trained, to_image

        input_BCHW = to_tensor(lr_HWC)
        for network in self.networks:
            if time.monotonic() - self.started > MOST_SECONDS:
                self.notes.append(f"{network.name} is left out: restoring took more than {MOST_SECONDS:.0f} s by then.")
                continue
            try:
                loaded = load_trained(self.folder, network.point.record, network.point.measured.routing)
                wrap = 0 if is_part else wrap_width(loaded, self.protocol.wrap)
                with computing(), torch.inference_mode():
                    found = restore_image(
                        loaded, input_BCHW, tile=self.protocol.tile, overlap=self.protocol.overlap, wrap=wrap
                    )
                image_HWC = to_image(found.image_BCHW)
            except Exception as error:  # of a network of the user's own, too: a report is written nevertheless
                self.notes.append(f"{network.name} is left out: {' '.join(str(error).split())}.")
                continue
            yield network, image_HWC

    def _score_of(self, network: _Network, image: str) -> float | None:
        """Return the score of the whole image under the network's routing, as it was recorded."""
        record = self.records[network.point.record.record_id]
        in_float = (one for one in record.points if one.quantised is None)
        point = next((one for one in in_float if one.routing == network.point.measured.routing), None)
        scores = {} if point is None else {one.name: one.psnr_db for one in point.evaluation.images}
        return scores.get(image)

    def _map_attention(self, lr_HWC: Image) -> Iterator[AttentionMap]:
        """Map the attention of the networks that route, at every γ that they were scored at under the same policy."""
        from harness.core.configs import CAMixerSRConfig
        from harness.data import to_tensor
        from harness.models.attended import find_attended
        from harness.models.camixersr import CAMixerSR
        from harness.trial import load_trained, routed

        input_BCHW = to_tensor(lr_HWC)
        seen = set()
        for network in self.networks:
            record, routing = network.point.record, network.point.measured.routing
            if not isinstance(record.model, CAMixerSRConfig) or routing is None:
                continue
            if (record.network_id, routing.policy) in seen or time.monotonic() - self.started > 1.5 * MOST_SECONDS:
                continue
            seen.add((record.network_id, routing.policy))
            loaded = load_trained(self.folder, record, routing)
            assert isinstance(loaded, CAMixerSR)
            same = [
                point.routing for point in record.points if point.routing and point.routing.policy == routing.policy
            ]
            for one in sorted(dict.fromkeys(same), key=lambda found: found.gamma):
                variant = routed(loaded, one)
                assert isinstance(variant, CAMixerSR)
                with computing():
                    mask_SN = find_attended(variant, input_BCHW)[:, 0].numpy()
                window = record.model.window
                yield AttentionMap(
                    name=record.label,
                    gamma=None if one.policy in ("threshold", "schedule") else one.gamma,
                    routing=one.label(),
                    window=window,
                    size=(-(-lr_HWC.shape[0] // window), -(-lr_HWC.shape[1] // window)),
                    masks=tuple("".join("1" if attended else "0" for attended in row_N) for row_N in mask_SN),
                    share=float(mask_SN.mean()),
                    chosen=routing.label(),
                )


def _find_part(lr_HWC: Image) -> tuple[int, int, int, int]:
    """Return top, left, height and width of what is restored: of large images the part with most detail."""
    height, width = lr_HWC.shape[:2]
    if height * width <= MOST_LR_PIXELS:
        return 0, 0, height, width
    side = int(MOST_LR_PIXELS**0.5)
    rows, columns = min(height, side), min(width, side)
    luma_HW = lr_HWC.astype(np.float64).mean(axis=2)
    across_HW = np.abs(np.diff(luma_HW, axis=1, prepend=luma_HW[:, :1]))
    detail_HW = across_HW + np.abs(np.diff(luma_HW, axis=0, prepend=luma_HW[:1]))
    top, left = _find_most(detail_HW, rows, columns)
    return top, left, rows, columns


def _find_crop(images: Sequence[Image], side: int) -> tuple[int, int]:
    """Return top and left of the square in which the images differ most, the photograph among them."""
    luma = np.stack([image.astype(np.float64).mean(axis=2) for image in images])
    return _find_most(luma.var(axis=0), side, side)


def _find_most(map_HW: npt.NDArray[np.float64], rows: int, columns: int) -> tuple[int, int]:
    """Return top and left of the rectangle with the largest sum."""
    sums = np.pad(map_HW, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    boxes = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top), int(left)


def _clamp(value: int, most: int) -> int:
    return max(0, min(value, most))


def _psnr_of_luma(a_HWC: Image, b_HWC: Image) -> float:
    from harness.metrics.colour import luma_bt601
    from harness.metrics.fidelity import psnr_db

    return psnr_db(luma_bt601(a_HWC), luma_bt601(b_HWC))


def _encode(image_HWC: Image) -> str:
    """Return an image without loss, as a data URI."""
    return _write(image_HWC, "PNG", "image/png", optimize=True)


def _encode_overview(image_HWC: Image) -> str:
    from PIL import Image as Images

    small = Images.fromarray(image_HWC)
    small.thumbnail((_OVERVIEW, _OVERVIEW))
    return _write(np.asarray(small), "JPEG", "image/jpeg", quality=85)


def _write(image_HWC: Image, kind: str, mime: str, **options: Any) -> str:
    from PIL import Image as Images

    file = io.BytesIO()
    Images.fromarray(np.ascontiguousarray(image_HWC)).save(file, format=kind, **options)
    return f"data:{mime};base64,{base64.b64encode(file.getvalue()).decode()}"
