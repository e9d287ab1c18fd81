"""What the report's page draws, as one document that is valid JSON: axes, points, networks, histories.

Values are in the units of their axes, so that the page computes nothing but places. Everything is bounded: a study of
any size makes a page that can be opened and moved at a good rate, and the page says what it leaves out.
"""

import math
from typing import Any, NamedTuple

import yaml

from harness.core.configs import CustomConfig
from harness.core.constraints import parse_constraint
from harness.core.lean import LOSSES
from harness.core.records import METRIC_DIRECTIONS, Direction, TrialRecord
from harness.metrics import metric_label
from harness.reporting.front import Front, hypervolume_history, non_dominated, study_front
from harness.reporting.plots import (
    MOST_CURVES_DRAWN,
    MOST_POINTS_DRAWN,
    Axis,
    cost_metrics,
    quality_metric,
    spread,
    study_axis,
)
from harness.reporting.published import load_published
from harness.reporting.study import BASELINE_IDS, Point, Study

MOST_GAMMA_NETWORKS = 40  # whose curves over γ are drawn
MOST_LINES_DRAWN = 300  # of parallel coordinates, beside the front's
MOST_UNFINISHED_DRAWN = 500  # of each: stopped, rejected, failed
_MOST_CURVE_POINTS = 60
_MOST_MOMENTS = 200
_MOST_DIMENSIONS = 12
_ALWAYS_SHOWN = ("groups", "channels", "window", "depths", "heads")
_UNITLESS = {"ssim": "SSIM (0–1)", "attention_share": "attention share (0–1)"}
_KINDS = ("front", "other", "violating", "stopped", "rejected", "failed", "baseline", "published")
Kind = str


def describe_page(study: Study) -> dict[str, Any]:
    """Return the page's document: axes, points, networks, dimensions and the series of each chart.

    A point's `v` are its values on the axes in their order (null: not measured), `n` its network, `d` its settings of
    the dimensions. Points of trials that did not finish have whatever was known of them: of stopped ones the best score
    at their last rung.
    """
    return _Page(study).document()


class Shown(NamedTuple):
    """An axis of the page: a metric in a readable unit, with the direction that is better."""

    axis: Axis
    label: str
    direction: Direction
    is_objective: bool


class _Page:
    """Collects the document; what several parts need is found once."""

    def __init__(self, study: Study):
        self.study = study
        self.front: Front = study_front(study)
        self.axes = [shown for shown in _list_axes(study) if self._is_measured(shown.axis)]
        self.dimensions = _list_dimensions(study)
        self.networks: list[dict[str, Any]] = []
        self.places: dict[int, int] = {}  # by the id of a record, which the study holds
        self.points: list[dict[str, Any]] = []

    def _is_measured(self, axis: Axis) -> bool:
        holders = (*self.front.points, *spread(list(self.study.points), 200), *_baselines(self.study))
        if any(axis.value(point) is not None for point in holders):
            return True
        return not holders and axis.metric == "params" and any(trial.params for trial in self.study.trials)

    def document(self) -> dict[str, Any]:
        """Put everything together."""
        study, front = self.study, self.front
        best = {id(point.measured) for point in front.points}
        others = [point for point in study.points if id(point.measured) not in best]
        drawn = self._choose(others)
        for point in front.points:
            self._add(point, "front")
        for point in drawn:
            self._add(point, "other" if point.measured.feasible else "violating")
        for baseline in _baselines(study):
            self._add(baseline, "baseline")
        self._add_unfinished()
        published = self._add_published()
        knee = next((index for index, point in enumerate(front.points) if point is front.knee), None)
        return {
            "study": study.record.name,
            "kinds": list(_KINDS),
            "axes": [
                {
                    "key": shown.axis.metric,
                    "label": shown.label,
                    "name": metric_label(shown.axis.metric.partition("/")[0], study.record.protocol, unit=False),
                    "better": -1 if shown.direction == "minimize" else 1,
                    "objective": shown.is_objective,
                    "quality": shown.axis.metric in ("psnr_db", "ssim"),
                }
                for shown in self.axes
            ],
            "panels": self._list_panels(),
            "points": self.points,
            "networks": self.networks,
            "knee": knee,
            "left_out": len(others) - len(drawn),
            "published": published,
            "dimensions": self._describe_dimensions(),
            "lines": self._choose_lines(len(front.points), len(drawn)),
            "gamma": self._describe_gamma(),
            "hypervolume": self._describe_history(),
            "rungs": self._describe_rungs(),
            "training": self._describe_training(),
        }

    def _choose(self, others: list[Point]) -> list[Point]:
        """Choose the points beside the front that are drawn: those that nothing beats in a panel, and a spread."""
        if len(others) <= MOST_POINTS_DRAWN:
            return others
        wanted: set[int] = set()
        feasible = [point for point in self.study.points if point.measured.feasible]
        for pair in self._list_panels():
            shown, quality = (self.axes[index] for index in pair)
            if shown.is_objective and quality.is_objective:
                continue  # what nothing beats in two objectives is on the front
            pairs = [
                (point, (x, y))
                for point in feasible
                if (x := shown.axis.value(point)) is not None and (y := quality.axis.value(point)) is not None
            ]
            kept = non_dominated([values for _, values in pairs], [shown.direction, quality.direction])
            wanted.update(id(point) for (point, _), stays in zip(pairs, kept, strict=True) if stays)
        wanted.update(id(point) for point in spread(others, MOST_POINTS_DRAWN))
        return [point for point in others if id(point) in wanted]

    def _list_panels(self) -> list[list[int]]:
        """Return the pairs of axes (across, up) of the panels: quality against costs, the objectives first."""
        keys = [shown.axis.metric for shown in self.axes]
        quality = quality_metric(self.study)
        if quality not in keys:
            return []
        costs = [*cost_metrics(self.study), *_latencies(self.study)[:1], "macs", "params"]
        distinct = [key for key in dict.fromkeys(costs) if key in keys and key != quality]
        return [[keys.index(key), keys.index(quality)] for key in distinct[:5]]

    def _network(self, record: TrialRecord) -> int:
        """Return a network's place in the document, and write it there when it is first met."""
        if id(record) not in self.places:
            self.places[id(record)] = len(self.networks)
            self.networks.append(
                {
                    "label": record.label,
                    "trial": record.number,
                    "id": record.network_id,
                    "state": record.state,
                    "config": _describe_config(record),
                    "reason": record.reason,
                }
            )
        return self.places[id(record)]

    def _add(self, point: Point, kind: Kind) -> None:
        measured = point.measured
        routing = measured.routing
        quantised = measured.quantised
        names = [*([routing.label()] if routing else []), *([quantised.label] if quantised else [])]
        notes = [f"violates {text}" for text, value in measured.constraints.items() if value > 0]
        if quantised is not None:
            notes.append(
                f"a file of {quantised.file_bytes / 2**20:.2f} MiB, {quantised.float_bytes / 2**20:.2f} in float"
            )
        latency = point.latency()
        if latency is not None:
            notes.append(f"latency IQR {latency.iqr:.3g} ms{', of a noisy run' if latency.is_noisy else ''}")
        self._append(
            kind,
            self._network(point.record),
            [shown.axis.value(point) for shown in self.axes],
            ", ".join(names) or None,
            [_setting(point.record, point, name) for name in self.dimensions] if kind != "baseline" else None,
            "; ".join(notes) or None,
            None if kind == "baseline" else point.point_id,
        )

    def _append(
        self,
        kind: Kind,
        network: int,
        values: list[float | None],
        routing: str | None,
        settings: list[Any] | None = None,
        note: str | None = None,
        identity: str | None = None,
    ) -> None:
        entry: dict[str, Any] = {"k": _KINDS.index(kind), "n": network, "v": [_round(value) for value in values]}
        optional = {"r": routing, "d": settings, "note": note, "id": identity}
        self.points.append(entry | {name: value for name, value in optional.items() if value is not None})

    def _add_unfinished(self) -> None:
        """Add trials without points, with what was known of them when they ended."""
        for state in ("stopped", "rejected", "failed"):
            found = [trial for trial in self.study.trials if trial.state == state]
            for record in spread(found, MOST_UNFINISHED_DRAWN):
                known = _known_values(self.study, record)
                note = {"stopped": "stopped while training", "rejected": "rejected before training"}.get(
                    state, "failed"
                )
                if record.rungs:
                    rung = record.rungs[-1]
                    note = f"{state} after {rung.step:,} steps: scores are of then, on {rung.images} images"
                values = [
                    None if (value := known.get(shown.axis.metric)) is None else value / shown.axis.unit
                    for shown in self.axes
                ]
                routing = record.rungs[-1].best.routing if record.rungs else getattr(record.model, "routing", None)
                self._append(state, self._network(record), values, routing.label() if routing else None, None, note)

    def _add_published(self) -> dict[str, Any] | None:
        """Add the published results on the study's validation images, or else on Set5; say what they are."""
        record = self.study.record
        rows = load_published(record.scale)
        validation = record.data.validation.lower()
        same = [row for row in rows if row["dataset"] == validation]
        chosen = same or [row for row in rows if row["dataset"] == "set5"]
        if not chosen or record.protocol != "light":
            return None
        size = tuple(side * record.scale for side in record.macs_input_size)
        seen = set()
        for row in chosen:
            name = (row["label"], row["psnr_db"])
            if name in seen:
                continue
            seen.add(name)
            known: dict[str, float] = {"psnr_db": row["psnr_db"], "ssim": row["ssim"], "params": row["params"]}
            if size == (720, 1280):
                known["macs"] = row["macs"]
            place = len(self.networks)
            self.networks.append(
                {
                    "label": row["label"],
                    "trial": None,
                    "id": None,
                    "state": "published",
                    "config": [
                        ["source", row["source"]],
                        ["trained on", row["trained_on"]],
                        ["images", row["dataset"]],
                    ],
                    "reason": None,
                }
            )
            values = [
                None if shown.axis.metric not in known else known[shown.axis.metric] / shown.axis.unit
                for shown in self.axes
            ]
            self._append("published", place, values, None, None, "published after full training, not measured here")
        return {"dataset": chosen[0]["dataset"], "same": bool(same)}

    def _describe_dimensions(self) -> list[dict[str, Any]]:
        """Return the dimensions; of those whose values are no numbers, the values in their order as `choices`."""
        described: list[dict[str, Any]] = []
        for column, name in enumerate(self.dimensions):
            values = [entry["d"][column] for entry in self.points if "d" in entry and entry["d"][column] is not None]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                described.append({"name": name, "choices": None})
                continue
            choices = sorted({str(value) for value in values}, key=lambda text: (len(text), text))
            described.append({"name": name, "choices": choices})
            for entry in self.points:
                if "d" in entry and entry["d"][column] is not None:
                    entry["d"][column] = choices.index(str(entry["d"][column]))
        return described

    def _choose_lines(self, on_front: int, others: int) -> list[int]:
        """Return the points whose lines parallel coordinates show: a spread of the others, then the front."""
        if not self.dimensions:
            return []
        return [on_front + place for place in spread(list(range(others)), MOST_LINES_DRAWN)] + list(range(on_front))

    def _describe_gamma(self) -> dict[str, Any]:
        """Return the curves over γ of networks that have several points under one policy, those of the front first."""
        curves: dict[tuple[int, str], list[Point]] = {}
        for point in self.study.points:
            routing = point.measured.routing
            if routing is not None and routing.policy in ("fixed", "probability"):
                quantised = point.measured.quantised
                way = routing.policy if quantised is None else f"{routing.policy}, {quantised.label}"
                curves.setdefault((id(point.record), way), []).append(point)
        several = {key: points for key, points in curves.items() if len(points) > 1}
        best = {id(point.record) for point in self.front.points}
        order = [record for record in dict.fromkeys(key[0] for key in several) if record in best]
        rest = [record for record in dict.fromkeys(key[0] for key in several) if record not in best]
        order = spread(order, MOST_GAMMA_NETWORKS)
        order += spread(rest, MOST_GAMMA_NETWORKS - len(order)) if len(order) < MOST_GAMMA_NETWORKS else []
        chosen = set(order)
        quality, costs = quality_metric(self.study), [*_latencies(self.study)[:1], "macs"]
        shown = [index for index, one in enumerate(self.axes) if one.axis.metric in (quality, *costs)]
        return {
            "axes": sorted(shown, key=lambda index: self.axes[index].axis.metric != quality),
            "networks": len({key[0] for key in several}),
            "curves": [
                {
                    "n": self._network(points[0].record),
                    "policy": policy,
                    "front": record in best,
                    "at": [
                        [_gamma(point), *(_round(self.axes[index].axis.value(point)) for index in shown)]
                        for point in sorted(points, key=_gamma)
                    ],
                }
                for (record, policy), points in several.items()
                if record in chosen
            ],
            "columns": shown,
        }

    def _describe_history(self) -> list[list[Any]]:
        labels = {record.record_id: record.label for record in self.study.trials}
        moments = hypervolume_history(self.study, most=_MOST_MOMENTS)
        if len(moments) < 2:
            return []
        return [
            [moment.networks, _round(moment.hypervolume), f"{moment.record_id}: {labels[moment.record_id]}"]
            for moment in moments
        ]

    def _describe_rungs(self) -> dict[str, Any] | None:
        """Return the best score of each network at each of its rungs and at the end; None where there was no rung."""
        scored = [record for record in self.study.trials if record.rungs]
        if not scored:
            return None
        first = scored[0].rungs[0]
        return {
            "over": "training step" if scored[0].rung_place(first) == first.step else "validation images",
            "label": metric_label("psnr_db", self.study.record.protocol),
            "ways": [
                {
                    "name": f"trial {record.number}: {record.label}",
                    "state": record.state,
                    "at": _way(self.study, record),
                }
                for record in spread(scored, MOST_CURVES_DRAWN)
            ],
        }

    def _describe_training(self) -> dict[str, Any] | None:
        """Return curves of the loss over steps, of SwinIR-light and of a spread of networks; None without any."""
        trained = [record for record in self.study.trials if record.training_result]
        baselines = [record for record in self.study.baselines if record.training_result]
        curves = []
        for record in (*baselines, *spread(trained, MOST_CURVES_DRAWN)):
            pairs = _loss_curve(record)
            if pairs:
                is_baseline = record.kind == "baseline"
                name = "SwinIR-light" if is_baseline else f"trial {record.number}: {record.label}"
                curves.append({"name": name, "baseline": is_baseline, "state": record.state, "at": pairs})
        if not curves:
            return None
        label = "L1 loss (0–1)" if self.study.record.task == "classic" else "L1 loss, weighted by latitude (0–1)"
        return {"label": label, "curves": curves}


def _baselines(study: Study) -> list[Point]:
    return [found for name in BASELINE_IDS if (found := study.baseline(name)) is not None]


def _latencies(study: Study) -> list[str]:
    """Return the metrics of latency: as the objectives name them, then those of further devices."""
    named = [objective.metric for objective in study.record.objectives if objective.metric.startswith("latency_ms")]
    devices = [f"/{device}" for device in study.record.devices]
    others = [f"latency_ms{'' if index == 0 else device}" for index, device in enumerate(devices or [""])]
    taken = {"latency_ms" if devices and name == f"latency_ms{devices[0]}" else name for name in named}
    return [*named, *(name for name in others if name not in taken)]


def _list_axes(study: Study) -> list[Shown]:
    """Return the objectives and everything else that is measured, qualities first."""
    objectives = {objective.metric: objective.direction for objective in study.record.objectives}
    ratios = [name.replace("latency_ms", "latency_ratio") for name in _latencies(study)[:1]]
    keys = ["psnr_db", "ssim", *_latencies(study), "macs", "params", *ratios, "peak_memory_bytes", "attention_share"]
    keys = list(dict.fromkeys([*(key for key in objectives if key in ("psnr_db", "ssim")), *keys, *objectives]))
    shown = []
    for key in keys:
        name = key.partition("/")[0]
        direction = objectives.get(key, METRIC_DIRECTIONS[name])
        shown.append(Shown(study_axis(study, key), _label(study, key), direction, key in objectives))
    return shown


def _label(study: Study, metric: str) -> str:
    """Return the label of an axis: the metric, its unit, and what it was measured on."""
    name, _, device = metric.partition("/")
    record = study.record
    if name in _UNITLESS:
        return _UNITLESS[name].replace("SSIM", metric_label("ssim", record.protocol, unit=False))
    label = study_axis(study, name).label
    if name in ("latency_ms", "latency_ratio"):
        place = device or (record.devices[0] if record.devices else "")
        height, width = record.latency_input_size
        unit = "latency (ms)" if name == "latency_ms" else "latency (× SwinIR-light)"
        return f"{unit}, {height}×{width} input{f' on {place}' if place else ''}"
    if name == "macs":
        height, width = record.macs_input_size
        return f"{label}, {height}×{width} input"
    return label


def _list_dimensions(study: Study) -> list[str]:
    """Return what the study's space searched, by dotted name; none where its text cannot be read."""
    try:
        space = yaml.safe_load(study.record.space)
        names = [str(name) for name in space["dimensions"]]
    except (yaml.YAMLError, KeyError, TypeError):
        names = ["model.groups", "model.channels", "model.window", "routing.gamma", "routing.policy"]
    return names[:_MOST_DIMENSIONS]


def _setting(record: TrialRecord, point: Point, name: str) -> Any:
    """Return a setting of a point's network by its dotted name, as a number or a word; None where it has none."""
    section, _, rest = name.partition(".")
    model = record.compression.model if record.compression else record.model
    found: Any = {
        "model": model,
        "training": record.training,
        "routing": point.measured.routing,
        "compression": record.plan,
    }.get(section)
    for part in rest.split("."):
        settings = found if isinstance(found, dict) else getattr(found, "settings", {})
        found = settings.get(part, None if isinstance(found, dict) else getattr(found, part, None))
    if isinstance(found, tuple | list):
        return "-".join(str(value) for value in found)
    return found if isinstance(found, int | float | str) else None


def _describe_config(record: TrialRecord) -> list[list[str]]:
    """Return a network's config in readable lines: what names it, and whatever is not as in the released one."""
    lines = []
    model = record.model
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name in ("family", "scale", "routing", "code"):
            continue
        if name == "settings":
            lines += [[key.replace("_", " "), _write(one)] for key, one in value.items()]
            continue
        if name == "widths":
            if value is not None:
                lines.append(["widths", "unequal, as pruning left them"])
        elif name in _ALWAYS_SHOWN or value != field.default:
            lines.append([name.replace("_", " "), _write(value)])
    if record.training is not None:
        training = record.training
        lines.append(["training", f"{training.steps:,} steps of {training.batch_size} × {training.hr_patch_size}² px"])
        lines.append(["learning rate", f"{training.learning_rate:g}, {training.schedule.name}"])
        if training.distillation is not None:
            lines.append(["teacher", training.distillation.label()])
    if record.plan is not None:
        lines.append(["compressed to", f"{record.plan.left:.0%} of its {record.plan.cost}"])
    return lines


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return "-".join(str(one) for one in value)
    return str(value)


def _known_values(study: Study, record: TrialRecord) -> dict[str, float | None]:
    """Return what is known of a trial that did not finish, by metric, in the metrics' own units."""
    known: dict[str, float | None] = {"params": record.params}
    if record.rungs:
        best = record.rungs[-1].best
        known |= {
            "psnr_db": best.psnr_db,
            "ssim": best.ssim,
            "macs": best.macs,
            "attention_share": best.attention_share,
        }
        early = next((entry.latency for entry in record.early_latency if entry.routing == best.routing), ())
        for latency in early[:1]:
            known |= {"latency_ms": latency.median, "latency_ratio": latency.ratio}
    else:
        known["macs"] = _count_macs(study, record)
    for text, violation in record.violations.items():  # what was measured of it, from by how much it was too much
        constraint = parse_constraint(text)
        sign = 1 if constraint.operator == "<=" else -1
        if math.isfinite(violation):
            known.setdefault(constraint.metric, constraint.bound + sign * violation)
    for name in ("latency_ms", "latency_ratio"):
        for device in study.record.devices[:1]:
            either = known.get(name, known.get(f"{name}/{device}"))
            known[name] = known[f"{name}/{device}"] = either
    return known


def _count_macs(study: Study, record: TrialRecord) -> int | None:
    """Count the MACs of a network that was never trained, under the routing that was proposed."""
    routing = getattr(record.model, "routing", None)
    if record.plan is not None or isinstance(record.model, CustomConfig):  # known when pruned, or by running its code
        return None
    if routing is not None and routing.policy == "threshold":
        return None
    from harness.profiling import canonical_macs  # torch, which reports do without where every trial finished

    return canonical_macs(record.model, study.record.macs_input_size)


def _way(study: Study, record: TrialRecord) -> list[list[Any]]:
    """Return where a network was scored, the best PSNR there, and words; of calibrated routings nothing."""
    way: list[list[Any]] = []
    for rung in record.rungs:
        words = f"step {rung.step:,}, {rung.images} images, place {rung.place} of {rung.networks}"
        way.append([record.rung_place(rung), _round(rung.best.psnr_db), words])
    ends = [
        point.evaluation.psnr_db for point in record.points if point.routing is None or point.routing.per_block is None
    ]
    if ends and record.training is not None:
        steps, images = record.training.steps, len(study.record.validation_images)
        place = steps if record.rung_place(record.rungs[-1]) == record.rungs[-1].step else images
        way.append([place, _round(max(ends)), f"step {steps:,}, {images} images, trained to the end"])
    return way


def _loss_curve(record: TrialRecord) -> list[list[float]]:
    result = record.training_result
    assert result is not None
    curve = next((name for name in LOSSES if name in result.curves), "loss")
    pairs = [
        [step, float(f"{value:.3g}")]
        for step, value in zip(result.curve_steps, result.curves.get(curve, ()), strict=False)
        if math.isfinite(value) and value > 0
    ]
    return pairs[:: max(1, -(-len(pairs) // _MOST_CURVE_POINTS))]


def _gamma(point: Point) -> float:
    routing = point.measured.routing
    return routing.gamma if routing else 0.0


def _round(value: float | None) -> float | None:
    """Write as many digits as anybody reads: the document is as large as its numbers are long."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
