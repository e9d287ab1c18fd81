"""The model card of a bundle."""

from harness.core.records import PointRecord, TrialRecord
from harness.core.units import format_count, format_seconds
from harness.metrics import metric_label


def write_card(record: TrialRecord, point: PointRecord, picked_as: str, baselines: dict[str, PointRecord]) -> str:
    """Return the card as Markdown: what it is, trained on what, how it compares, how to use it, its limits."""
    evaluation, scale = point.evaluation, point.evaluation.scale
    psnr, ssim = (metric_label(name, evaluation.protocol) for name in ("psnr_db", "ssim"))
    quality = metric_label("psnr_db", evaluation.protocol, unit=False)
    rows = [_row(f"**this network** ({point.routing.label() if point.routing else 'no routing'})", point)]
    rows += [_row(name, baseline) for name, baseline in baselines.items()]
    converged = record.training is not None and record.training.is_full_recipe
    training = "It has no weights."
    if record.training is not None and record.training_result is not None:
        result = record.training_result
        training = (
            f"{result.steps} steps of {record.training.batch_size} patches of {record.training.hr_patch_size}² "
            f"high-resolution pixels from `{record.data.train}`, {format_seconds(result.seconds)} on {result.device} "
            f"({result.threads} threads), seed {record.training.seed}."
        )
        if not converged:
            training += (
                " **Not converged**: far fewer steps than the published recipe, so differences in dB say little."
            )
    latency = "; ".join(
        f"{entry.device} ({entry.device_name}), {entry.precision}, input {entry.input_size[0]}×{entry.input_size[1]}, "
        f"{len(entry.samples)} repeats" + (f", interleaved with {entry.reference}" if entry.reference else "")
        for entry in point.latency
    )
    seam = f"\nPanoramas: {evaluation.seam_note}." if evaluation.seam_note else ""
    is_odi = record.training is not None and record.training.task == "odi"
    whole = "; whole panoramas, h×2h, without a seam" if is_odi else ""
    return f"""# {record.label} ×{scale}

Picked as `{picked_as}` from study `{record.study}`, {record.record_id}, network {record.network_id}.

## Measured

| network | {psnr} | {ssim} | MACs | parameters | latency (ms) | / SwinIR-light | attention share |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{quality} and {ssim}: protocol `{evaluation.protocol}` on `{evaluation.dataset}` ({len(evaluation.images)} images).
Latency: {latency or "not measured"}. Versions and samples stand in metrics.json.{seam}

## Training

{training}

## Use

```python
import harness

network = harness.load_bundle("path/to/this/folder")  # B×3×h×w in [0, 1] → B×3×{scale}h×{scale}w{whole}
```

`harness upscale path/to/this/folder IN OUT` restores image files.

## Limits

It undoes bicubic shrinking by {scale}; noise, blur and compression were not trained for. Scores hold for
the images and the protocol named above.
"""


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
