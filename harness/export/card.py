"""The model card of a bundle."""

from collections.abc import Collection

from harness.core.records import CompressionRecord, EvaluationRecord, PointRecord
from harness.core.units import format_count, format_seconds
from harness.export.documents import IMPORTED, BundleCalibration, BundleConfig, BundleMetrics
from harness.export.licence import describe_licence
from harness.metrics import metric_label

_KINDS = {
    "camixersr": "A CAMixerSR super-resolution network",
    "swinir": "A SwinIR super-resolution network",
    "bicubic": "Bicubic interpolation",
    "custom": "A network of its user's own, of the function that config.json names",
}
_FILES = {
    "config.json": "the network with its routing, where it came from, its licence",
    "model.safetensors": "its weights",
    "metrics.json": "everything measured, with protocol, device and versions; training, calibration, compression",
    "model.onnx": "the same network for any runtime, its routing built in: `image` B×3×h×w in [0, 1] → `restored`",
    "parity.json": "how near its output is to the network's, on photographs of the scikit-image package",
    "example.py": "restores an image with it, without harness",
    "quantised.onnx": "a quantised ONNX file of the network, for images of one size",
    "quantisation.json": "how that was made, and what it came to",
    "LICENCE": "what is known of the licence",
    "README.md": "this card",
    "SHA256SUMS": "checksums of all of it: `sha256sum -c SHA256SUMS`",
}


def write_example(scale: int) -> str:
    """Return the 15 lines that restore an image by a bundle's ONNX file, with onnxruntime and pillow alone."""
    return f"""# pip install onnxruntime pillow; then, in this folder: python example.py IN.png OUT.png
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
image_HWC = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
image_BCHW = image_HWC.transpose(2, 0, 1)[None].astype(np.float32) / 255  # RGB in [0, 1], any size

(restored_BCHW,) = session.run(["restored"], {{"image": image_BCHW}})

restored_HWC = restored_BCHW[0].transpose(1, 2, 0).clip(0, 1)  # {scale} times as high and as wide
Image.fromarray((restored_HWC * 255 + 0.5).astype(np.uint8)).save(sys.argv[2])
"""


def write_card(config: BundleConfig, metrics: BundleMetrics, files: Collection[str]) -> str:
    """Return the card as Markdown: what it is, trained on what, how it compares, how to use it, its limits.

    `files` are the names of the bundle's other files.
    """
    calibration = metrics.calibration
    point = metrics.point if calibration is None else calibration.point_before
    scale = point.evaluation.scale if point is not None else config.model.scale
    origin = f"Picked as `{config.picked_as}` from study `{config.study}`, {config.record_id}"
    training = "It has no weights."
    if config.picked_as == IMPORTED:
        origin = f"Entry `{config.record_id}` of the file `{config.study}`"
        training = "It was trained elsewhere."
    if metrics.training is not None and metrics.training_result is not None and metrics.data is not None:
        result = metrics.training_result
        processes = f"{result.processes} processes of " if result.processes > 1 else ""
        training = (
            f"{result.steps} steps of {metrics.training.batch_size} patches of {metrics.training.hr_patch_size}² "
            f"high-resolution pixels from `{metrics.data.train}`, {format_seconds(result.seconds)} on {result.device} "
            f"({processes}{result.threads} threads), seed {metrics.training.seed}."
        )
        if metrics.training.distillation is not None:
            taught = metrics.training.distillation
            training += f" It learnt from a teacher, too: `{taught.teacher}` ({taught.teacher_id}), {taught.label()}."
        if not metrics.converged:
            training += (
                " **Not converged**: far fewer steps than the published recipe, so differences in dB say little."
            )
    if metrics.compression is not None:
        known = [training] if metrics.training_result is not None else []
        training = "\n\n".join([*known, _describe_chain(metrics.compression)])
    images = "panoramas" if config.task == "odi" else "RGB images"
    whole = "; whole panoramas, h×2h, without a seam" if config.task == "odi" else ""
    return f"""# {config.model.label()} ×{scale}

{_KINDS[config.model.family]}: {images} become {scale} times as high and as wide.
{origin}, network {config.network_id}.
{"" if calibration is None else _describe(calibration)}
## Measured

{_describe_measured(point, metrics)}

{_describe_choice(metrics)}## Training

{training}

## Use

```python
import harness

network = harness.load_bundle("path/to/this/folder")  # B×3×h×w in [0, 1] → B×3×{scale}h×{scale}w{whole}
```

`harness upscale path/to/this/folder IN OUT` restores image files and folders of them; `harness verify
path/to/this/folder` checks everything in this folder on the machine at hand.
{_describe_onnx(config) if "model.onnx" in files else ""}
## Limits

It undoes bicubic shrinking by {scale}; noise, blur and compression were not trained for. Scores hold for
the images and the protocol named above, latencies for the device. Detail that it adds is likely, and no evidence of
what was there.

## Licence

{describe_licence(config, metrics)}

## Files

{chr(10).join(f"- `{name}`: {what}" for name, what in _FILES.items() if name in {*files, "README.md", "SHA256SUMS"})}
"""


def _describe_onnx(config: BundleConfig) -> str:
    """Say how the ONNX file is used."""
    seam = " It leaves the seam of a panorama as it is; `harness upscale` does not." if config.task == "odi" else ""
    return f"""
Without harness, by example.py, which needs `pip install onnxruntime pillow` and nothing else.{seam}

```python
{write_example(config.model.scale)}```
"""


def _describe_choice(metrics: BundleMetrics) -> str:
    """Say why it was this point of the study, and what that gives up; '' where it was not chosen."""
    if metrics.choice is None:
        return ""
    lines = "\n".join(f"- {sentence}" for sentence in metrics.choice.sentences)
    return f"## Choice\n\n{lines}\n\n"


def _describe_measured(point: PointRecord | None, metrics: BundleMetrics) -> str:
    """Return the table of what was measured, and how."""
    if point is None:
        return "Nothing was: `harness evaluate` and `harness profile` do so."
    evaluation = point.evaluation
    psnr, ssim = (metric_label(name, evaluation.protocol) for name in ("psnr_db", "ssim"))
    quality = metric_label("psnr_db", evaluation.protocol, unit=False)
    routing = point.routing.label() if point.routing else "no routing"
    name = "**this network**" if metrics.calibration is None else "this network before its routing was calibrated"
    rows = [_row(f"{name} ({routing})", point)]
    file = metrics.quantised
    if file is not None and file.quantised is not None:
        rows.append(_row(f"quantised.onnx ({routing}, {file.quantised.label})", file))
    rows += [_row(name, baseline) for name, baseline in metrics.baselines.items()]
    latency = "; ".join(
        f"{entry.device} ({entry.device_name}), {entry.precision}, input {entry.input_size[0]}×{entry.input_size[1]}, "
        f"{len(entry.samples)} repeats" + (f", interleaved with {entry.reference}" if entry.reference else "")
        for entry in point.latency
    )
    quantised = "" if file is None else f"\n{_describe_quantised(file)}"
    seam = f"\nPanoramas: {evaluation.seam_note}." if evaluation.seam_note else ""
    return f"""| network | {psnr} | {ssim} | MACs | parameters | latency (ms) | / SwinIR-light | attention share |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{quality} and {ssim}: {_rules(evaluation)}.
{_compare(point, metrics.baselines)}Latency: {latency or "not measured"}. Versions and samples stand in
metrics.json.{quantised}{seam}"""


def _describe_quantised(point: PointRecord) -> str:
    """Say what the quantised file is, beside which its row is to be read."""
    file = point.quantised
    assert file is not None
    ratio = "" if file.float_ratio is None else f", {file.float_ratio:.3f} of that file's latency"
    beside = next(
        (f", beside {one.reference} under {one.compared_under}" for one in point.latency if one.reference), ""
    )
    return (
        f"`quantised.onnx` is the same network and routing for images of {file.tile}×{file.tile} low-resolution pixels "
        f"(larger ones in tiles), {file.label}: {file.layers} layers quantised, {file.kept} kept in float, "
        f"{file.file_bytes / 2**20:.2f} MiB. Its scores and latency are those of the file in that runtime{beside}; "
        f"MACs and attention are those in float. In float the same runtime gives {file.float_psnr_db:.3f} dB{ratio}. "
        "`harness upscale` on this folder runs the weights in float; `harness evaluate quantised.onnx --data IMAGES` "
        "runs the file."
    )


def _compare(point: PointRecord, baselines: dict[str, PointRecord]) -> str:
    """Say in a line for each baseline how the network compares with it; '' where there is none."""
    lines = []
    for name, baseline in baselines.items():
        parts = [f"{point.evaluation.psnr_db - baseline.evaluation.psnr_db:+.3f} dB"]
        parts += [f"{point.macs / baseline.macs:.3f} of its MACs"] if baseline.macs else []
        parts += [f"{point.params / baseline.params:.3f} of its parameters"] if baseline.params else []
        beside = next((one for one in point.latency if one.reference == name and one.ratio is not None), None)
        parts += [] if beside is None else [f"{beside.ratio:.3f} of its latency"]
        lines.append(f"Against {name}: {', '.join(parts)}.\n")
    return "".join(lines)


def _row(name: str, point: PointRecord) -> str:
    evaluation = point.evaluation
    latency = point.value("latency_ms")
    ratio = point.value("latency_ratio")
    cells = [
        name,
        f"{evaluation.psnr_db:.3f}",
        f"{evaluation.ssim:.4f}",
        format_count(point.macs),
        format_count(point.params),
        "–" if latency is None else f"{latency:.2f}",
        "–" if ratio is None else f"{ratio:.3f}",
        "–" if evaluation.attention_share is None else f"{evaluation.attention_share:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _rules(evaluation: EvaluationRecord) -> str:
    return f"protocol `{evaluation.protocol}` on `{evaluation.dataset}` ({len(evaluation.images)} images)"


def _describe_chain(chain: CompressionRecord) -> str:
    """Say what the network was made of, and what each stage came to."""
    first, last, plan = chain.stages[0], chain.stages[-1], chain.config
    widths = ", ".join(f"{kind} {count} of {first.widths[kind]}" for kind, count in last.widths.items())
    rows = []
    for stage in chain.stages:
        ratio = stage.latency_ratio
        cells = [stage.name, f"{stage.psnr_db:.3f}", format_count(stage.macs), format_count(stage.params)]
        rows.append(f"| {' | '.join(cells)} | {'–' if ratio is None else f'{ratio:.3f}'} |")
    return f"""Made of {chain.model.label()} (network {chain.parent}) by structured pruning to {plan.left:.1%} of its
{plan.cost} (importance `{plan.importance}`, scope `{plan.scope}`) and {sum(one.steps for one in chain.tuning)} steps
of training on. Channels left, summed over blocks: {widths}.

| stage | PSNR (dB) | MACs | parameters | latency / SwinIR-light |
|---|---|---|---|---|
{chr(10).join(rows)}"""


def _describe(calibration: BundleCalibration) -> str:
    """Say how the routing was found, and that what was measured before does not hold for it."""
    record, evaluation = calibration.record, calibration.evaluation
    on_crops = (
        f"PSNR-Y {record.psnr_db:.3f} dB there, without attention {record.psnr_db_without:.3f}, with all of it "
        f"{record.psnr_db_full:.3f}"
    )
    scored = "It has not been evaluated on other images."
    if evaluation is not None:
        psnr, ssim = (metric_label(name, evaluation.protocol, unit=False) for name in ("psnr_db", "ssim"))
        scored = (
            f"On images that were not tuned on, {_rules(evaluation)}: {psnr} {evaluation.psnr_db:.3f} dB, {ssim} "
            f"{evaluation.ssim:.4f}, attention share {evaluation.attention_share:.2f}."
        )
    return f"""
## Routing

`{record.routing.label()}` at a share of {record.share:g}, calibrated after the network was picked, on
{len(record.images)} crops of {record.crop}×{record.crop} low-resolution pixels of `{record.dataset}`: {on_crops}.
{scored}
What stands below was measured under the routing before and does not hold for this one: `harness evaluate` and
`harness profile` measure it.
"""
