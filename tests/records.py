"""Builders of realistic records: real pydantic records with made-up measurements, for rooms that read records."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core.configs import (
    BicubicConfig,
    CAMixerSRConfig,
    DataConfig,
    RoutingConfig,
    SwinIRConfig,
    TrainingConfig,
)
from harness.core.environment import EnvironmentRecord
from harness.core.records import (
    EvaluationRecord,
    GainsRecord,
    ImageScore,
    LatencyRecord,
    MacsRecord,
    ObjectiveConfig,
    PointRecord,
    QuantisedFile,
    RungPoint,
    RungRecord,
    StudyRecord,
    TrainingRecord,
    TrialRecord,
    TrialState,
    network_id,
)
from harness.core.study_folder import StudyFolder

STUDY = "quickstart"
IMAGES = ("astronaut", "coffee", "chelsea")
SHORT = TrainingConfig(steps=100, batch_size=8, hr_patch_size=128)
DATA = DataConfig()
ENVIRONMENT = EnvironmentRecord(
    harness_version="0.1.0",
    git_revision="0123456789abcdef",
    python_version="3.11.9",
    platform="Linux-6.1-x86_64",
    cpu_model="Example CPU @ 2.70GHz",
    cpu_count=2,
    packages={"torch": "2.13.0", "numpy": "2.1.0"},
)
PSNR_MACS = (
    ObjectiveConfig(metric="psnr_db", direction="maximize"),
    ObjectiveConfig(metric="macs", direction="minimize"),
)
PSNR_LATENCY_MACS = (
    ObjectiveConfig(metric="psnr_db", direction="maximize"),
    ObjectiveConfig(metric="latency_ms", direction="minimize"),
    ObjectiveConfig(metric="macs", direction="minimize"),
)


def study_record(**changes: Any) -> StudyRecord:
    values: dict[str, Any] = {
        "name": STUDY,
        "scale": 4,
        "task": "classic",
        "protocol": "light",
        "objectives": PSNR_LATENCY_MACS,
        "constraints": ("macs <= 30e9",),
        "data": DATA,
        "training": SHORT,
        "latency_input_size": (64, 64),
        "macs_input_size": (180, 320),
        "devices": ("cpu:1",),
        "validation_images": IMAGES,
        "space": "name: quickstart\n",
        "space_hash": "abc123",
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    return StudyRecord(**{**values, **changes})


def evaluation(psnr_db: float, *, share: float | None = None, protocol: str = "light") -> EvaluationRecord:
    ssim = 0.5 + psnr_db / 100
    return EvaluationRecord(
        protocol=protocol,
        scale=4,
        dataset="demo",
        dataset_hash="d0d0",
        psnr_db=psnr_db,
        ssim=ssim,
        attention_share=share,
        attention_share_per_block=None if share is None else (share, share),
        images=tuple(
            ImageScore(name=name, psnr_db=psnr_db + shift, ssim=ssim, attention_share=share)
            for name, shift in zip(IMAGES, (-1.0, 0.0, 1.0), strict=True)
        ),
        seconds=1.5,
    )


def latency(median: float, *, device: str = "cpu:1", reference_median: float = 80.0) -> LatencyRecord:
    return LatencyRecord(
        protocol="interleaved",
        device=device,
        device_name="Example CPU @ 2.70GHz",
        threads=1,
        precision="fp32",
        input_size=(64, 64),
        batch_size=1,
        warmup_runs=3,
        median=median,
        iqr=median * 0.03,
        p90=median * 1.1,
        samples=(median * 0.98, median, median * 1.03),
        reference="SwinIR-light",
        reference_median=reference_median,
        reference_samples=(reference_median,),
        ratio=median / reference_median,
        torch_version="2.13.0",
        measured_at="2026-01-02T03:05:00+00:00",
    )


def point(
    psnr_db: float,
    macs: int,
    *,
    routing: RoutingConfig | None = None,
    share: float | None = None,
    latency_ms: float | None = 20.0,
    params: int = 100_000,
    constraints: dict[str, float] | None = None,
    devices: Sequence[str] = ("cpu:1",),
) -> PointRecord:
    return PointRecord(
        routing=routing,
        evaluation=evaluation(psnr_db, share=share if share is not None else (routing.gamma if routing else None)),
        macs=macs,
        params=params,
        latency=() if latency_ms is None else tuple(latency(latency_ms, device=device) for device in devices),
        peak_memory_bytes=50_000_000,
        constraints=constraints or {},
    )


def training_record(training: TrainingConfig, *, start_loss: float = 0.2) -> TrainingRecord:
    steps = tuple(range(1, training.steps + 1, max(1, training.steps // 50)))
    loss = tuple(start_loss / math.sqrt(step) + 0.02 for step in steps)
    return TrainingRecord(
        steps=training.steps,
        seconds=0.1 * training.steps,
        images_per_second=80.0,
        loader_images_per_second=2000.0,
        device="cpu",
        threads=1,
        curve_steps=steps,
        curves={"loss": loss, "l1_loss": loss, "learning_rate": tuple(5e-4 for _ in steps)},
    )


def trial(
    number: int,
    points: Sequence[PointRecord] = (),
    *,
    state: TrialState = "complete",
    reason: str | None = None,
    model: CAMixerSRConfig | None = None,
    training: TrainingConfig = SHORT,
    **changes: Any,
) -> TrialRecord:
    if model is None:
        model = CAMixerSRConfig(groups=(1, 1), channels=16 + 4 * number)
    values: dict[str, Any] = {
        "study": STUDY,
        "record_id": f"trial-{number:05d}",
        "kind": "trial",
        "number": number,
        "state": state,
        "reason": reason if state != "complete" else None,
        "label": model.label(),
        "network_id": network_id(model, training, DATA),
        "model": model,
        "training": training,
        "data": DATA,
        "suggestion": {"groups": list(model.groups), "channels": model.channels, "gamma": model.routing.gamma},
        "params": 100_000,
        "macs_check": macs_record(3_000_000_000),
        "training_result": training_record(training) if points else None,
        "untrained": evaluation(24.0) if points else None,
        "points": tuple(points),
        "seconds": {"train": 10.0, "evaluate": 2.0},
        "environment": ENVIRONMENT,
        "started_at": "2026-01-02T03:04:05+00:00",
        "finished_at": "2026-01-02T03:05:05+00:00",
    }
    return TrialRecord(**{**values, **changes})


def gains(note: str | None) -> GainsRecord:
    gained = (0.0, 0.0) if note else (0.1, 0.0)
    return GainsRecord(
        dataset="demo",
        dataset_hash="0" * 16,
        images=("coffee",),
        crop=32,
        wanted=(),
        gains_alone_db=gained,
        gains_beside_db=gained,
        gains_db=gained,
        psnr_db_without=25.0,
        psnr_db_full=25.0,
        evaluations=8,
        seconds=1.0,
        note=note,
    )


def macs_record(macs: int) -> MacsRecord:
    return MacsRecord(
        macs=macs,
        by_counter={"fvcore": macs, "ptflops": macs + 1000},
        agree=True,
        max_disagreement=0.001,
        uncounted={"aten::grid_sampler_2d": 2},
        input_size=(180, 320),
    )


def swinir_baseline(psnr_db: float = 27.0, training: TrainingConfig = SHORT, **changes: Any) -> TrialRecord:
    model = SwinIRConfig()
    values: dict[str, Any] = {
        "kind": "baseline",
        "record_id": "baseline-swinir-light",
        "label": model.label(),
        "model": model,
        "network_id": network_id(model, training, DATA),
        "suggestion": {},
        "params": 929_628,
        "points": (point(psnr_db, 62_710_000_000, params=929_628, latency_ms=80.0),),
        "number": None,
        "training_result": training_record(training),
    }
    return trial(0, training=training).model_copy(update={**values, **changes})


def bicubic_baseline(psnr_db: float = 26.5, **changes: Any) -> TrialRecord:
    model = BicubicConfig()
    values: dict[str, Any] = {
        "kind": "baseline",
        "record_id": "baseline-bicubic",
        "label": model.label(),
        "model": model,
        "network_id": network_id(model, None, DATA),
        "training": None,
        "training_result": None,
        "untrained": None,
        "suggestion": {},
        "params": 0,
        "points": (point(psnr_db, 0, params=0, latency_ms=0.4),),
        "number": None,
        "macs_check": None,
    }
    return trial(0).model_copy(update={**values, **changes})


def search_trials(
    architectures: int = 9,
    gammas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    seed: int = 0,
    training: TrainingConfig = SHORT,
    devices: Sequence[str] = ("cpu:1",),
) -> list[TrialRecord]:
    """Trials whose points look like those of a short search: dB grow with the logarithm of MACs, with noise."""
    generator = random.Random(seed)
    trials = []
    for number in range(architectures):
        channels = generator.choice(range(16, 65, 4))
        groups = generator.choice([(1, 1), (2, 2), (4, 4, 4), (2, 2, 4, 4), (4, 4, 6, 6), (6, 6)])
        gamma = generator.choice(list(gammas))
        blocks = sum(groups)
        skill = generator.gauss(0, 0.05)
        points = []
        for value in gammas:
            macs = round(57_600 * (channels**2 * blocks * (5 + 2 * value) + 432 * channels) * 1.3)
            psnr = 26.6 + 0.25 * math.log2(macs / 3e9) + skill + 0.08 * value - generator.random() * 0.02
            points.append(
                point(
                    psnr,
                    macs,
                    routing=RoutingConfig(gamma=value),
                    latency_ms=2.0 + macs / 7e8 * (1 + generator.gauss(0, 0.05)),
                    params=channels**2 * blocks * 9 + 5000,
                    constraints={"macs <= 30e9": macs - 30e9},
                    devices=devices,
                )
            )
        model = CAMixerSRConfig(groups=groups, channels=channels, routing=RoutingConfig(gamma=gamma))
        trials.append(trial(number, points, model=model, training=training))
    return trials


def one_of_each_state() -> list[TrialRecord]:
    complete = search_trials(1)[0]
    assert isinstance(complete.model, CAMixerSRConfig)
    return [
        complete,
        trial(1, state="rejected", reason="macs 41.2 G violates macs <= 30e9 <script>alert(1)</script>"),
        trial(2, state="stopped", reason="dominated after 50 of 100 steps", training_result=training_record(SHORT)),
        trial(3, state="failed", reason="loss is not finite at step 17"),
        trial(
            4,
            state="answered",
            reason="the network of trial-00000",
            answered_by="trial-00000",
            model=complete.model,
            network_id=complete.network_id,
        ),
    ]


def quantised_point(whole: PointRecord, *, psnr_db: float, latency_ms: float, sha256: str = "0" * 64) -> PointRecord:
    """The point of a network's int8 file, timed in onnxruntime beside what the point in float was timed beside."""
    (beside,) = whole.latency
    own = {"runtime": "onnxruntime", "compared_under": "cpu:1", "median": latency_ms}
    told = QuantisedFile(
        method="minmax",
        runtime="onnxruntime",
        precision="fp32",
        tile=64,
        file="quantised/network.onnx",
        sha256=sha256,
        layers=31,
        kept=2,
        file_bytes=64_000,
        float_bytes=100_000,
        float_psnr_db=whole.evaluation.psnr_db,
        float_ratio=0.8,
    )
    changes = {
        "evaluation": whole.evaluation.model_copy(update={"psnr_db": psnr_db}),
        "latency": (beside.model_copy(update={**own, "ratio": latency_ms / (beside.reference_median or 1)}),),
        "quantised": told,
    }
    return whole.model_copy(update=changes)


def with_quantised(record: TrialRecord, *, faster: float = 0.5) -> TrialRecord:
    """The same trial whose network was quantised: a file for each point, a little worse, in that share of the time."""
    files = [
        quantised_point(
            one, psnr_db=one.evaluation.psnr_db - 0.05, latency_ms=faster * one.latency[0].median, sha256=f"{place:064}"
        )
        for place, one in enumerate(record.points)
    ]
    return record.model_copy(update={"points": (*record.points, *files)})


def on_panoramas(record: TrialRecord) -> TrialRecord:
    """The same record of a study whose images were continued by 32 columns on either side of 512 and scored as odi."""
    seen = {"protocol": "odi", "wrap": 32, "seam_factor": 1.125}
    points = [
        point.model_copy(update={"evaluation": point.evaluation.model_copy(update=seen)}) for point in record.points
    ]
    training = record.training.model_copy(update={"task": "odi"}) if record.training else None
    return record.model_copy(update={"points": tuple(points), "training": training})


def write_study(folder: Path, record: StudyRecord, trials: Sequence[TrialRecord]) -> StudyFolder:
    study = StudyFolder(folder)
    study.write_study(record)
    for found in trials:
        study.write_trial(found)
    return study


def rung(step: int, psnr_db: Sequence[float], *, images: int = len(IMAGES), promoted: bool = True) -> RungRecord:
    """A rung at which a network scored so much at γ = 0, .5, 1 and so on."""
    return RungRecord(
        step=step,
        images=images,
        points=tuple(
            RungPoint(
                routing=RoutingConfig(gamma=index / 2),
                psnr_db=value,
                ssim=0.5 + value / 100,
                attention_share=index / 2,
                macs=3_000_000_000,
            )
            for index, value in enumerate(psnr_db)
        ),
        place=1 if promoted else 3,
        networks=3,
        promoted=promoted,
        seconds=0.5,
    )


def with_rungs(stopped: bool = False) -> TrialRecord:
    """A trial that came to two rungs, or was stopped at the second one."""
    record = search_trials(2)[stopped]
    rungs = (rung(11, (25.0, 25.2)), rung(33, (25.9, 25.8), promoted=not stopped))
    changes: dict[str, Any] = {"rungs": rungs}
    if stopped:
        changes |= {"state": "stopped", "reason": "place 3 of 3 networks after 33 steps", "points": ()}
    return record.model_copy(update=changes)
