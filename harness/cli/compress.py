"""`harness compress`: a smaller, faster network out of a trained one."""

import math
import re
from enum import StrEnum
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import (
    INTERRUPTED,
    TrainingBar,
    command,
    console,
    describe_record,
    format_number,
    messages,
    note,
    print_json,
    print_table,
    stop_on_signals,
    warn_of_small,
)
from harness.core.errors import UserError
from harness.core.units import COUNTS, format_count

if TYPE_CHECKING:
    from harness.core.configs import CompressionConfig, TrainingConfig
    from harness.core.records import CompressionRecord, TrialRecord
    from harness.trial import Proposal, TrialSetup

_PLAN = "plan.json"
_REMEDY = "give another --out, or --overwrite to replace it"


class ImportanceName(StrEnum):
    """What units are judged by."""

    AUTO = "auto"
    TAYLOR = "taylor"
    GROUP_NORM = "group-norm"
    MAGNITUDE = "magnitude"
    RANDOM = "random"


class ScopeName(StrEnum):
    """How many units each group of channels gives up."""

    AUTO = "auto"
    GLOBAL = "global"
    UNIFORM = "uniform"
    MEASURED = "measured"


def compress(
    model: options.Model,
    train_images: Annotated[str, typer.Option("--train", help="Training images: a folder or a dataset's name.")],
    validation: Annotated[str, typer.Option(help="Validation images: a folder or a dataset's name.")],
    out: Annotated[
        Path, typer.Option(help="Where the run is kept, a folder of its own; the bundle comes to OUT/bundle.")
    ],
    weights: options.Weights = None,
    scale: options.ScaleOption = None,
    target_macs: Annotated[
        str | None, typer.Option(help="MACs at an output of 1280×720 that the network may have, such as 500M.")
    ] = None,
    target_params: Annotated[str | None, typer.Option(help="Parameters that it may have, such as 300k.")] = None,
    target_latency: Annotated[
        str | None, typer.Option(help="Milliseconds that it may take on --latency-device at 64×64, such as 20ms.")
    ] = None,
    left: Annotated[
        float | None, typer.Option(help="In place of a target: what share of --cost is left, in ]0, 1[.")
    ] = None,
    cost: Annotated[str, typer.Option(help="What --left is a share of: macs, params or latency.")] = "macs",
    importance: Annotated[
        ImportanceName, typer.Option(help="What channels are judged by; auto tries them on training crops.")
    ] = ImportanceName.AUTO,
    scope: Annotated[
        ScopeName,
        typer.Option(help="Which channels go: the least important anywhere, a share everywhere, by dB measured."),
    ] = ScopeName.AUTO,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Channels that may go: features,mixer,query,predictor,offsets,ffn; of SwinIR features,query,value,mlp."
            "  [default: all]"
        ),
    ] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Widths are multiples of this.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of pruning, each followed by its share of tuning.")] = 1,
    tune_steps: Annotated[int, typer.Option(min=0, help="Training steps after pruning, of all rounds.")] = 1000,
    tune_rate: Annotated[float, typer.Option(help="Their learning rate, times that of the training.")] = 0.5,
    distil: Annotated[
        bool, typer.Option("--distil", help="Learn from the network as it was before, too, while training on.")
    ] = False,
    quantise: Annotated[
        str | None,
        typer.Option(
            help="Quantise what comes out, into OUT: minmax, percentile, entropy, dynamic or fp16; or settings as "
            "YAML, {method: minmax, images: 8, tile: 48}."
        ),
    ] = None,
    settings: options.Settings = None,
    protocol: Annotated[str | None, typer.Option(help=f"How to score: {options.PROTOCOL_NAMES}.")] = None,
    latency_device: Annotated[str, typer.Option(help="Where to measure latency: cpu:THREADS or cuda:INDEX.")] = "cpu:1",
    device: options.TrainDevice = "cpu",
    licence: options.Licence = "unstated",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run of other settings in --out.")] = False,
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Prune a trained network to a target, train it on, and write a bundle; every stage is measured.

    The same command again goes on where it was left.
    """
    from harness.cli.target import default_protocol
    from harness.core.configs import DataConfig
    from harness.core.files import require_folder_place, write_text
    from harness.core.study_folder import StudyFolder
    from harness.data import open_dataset, refuse_overlap
    from harness.export import check_target, is_bundle, parse_licence, write_bundle
    from harness.metrics import get_protocol
    from harness.models import preset_config
    from harness.profiling import parse_device
    from harness.training import TrainingInterruptedError
    from harness.trial import Proposal, TrialSetup, build_seeded, load_trained, run_trial
    from harness.trial.quantisation import find_quantised

    licence = parse_licence(licence)
    target = _parse_target(target_macs, target_params, target_latency, left, cost)
    _refuse_study(model, results)
    network, parent = _find_parent(model, weights, scale)
    config = network.config
    training = _find_training(model, options.parse_settings(settings))
    if distil:  # from what it was, and from nobody else
        training = training.model_copy(update={"distillation": None})
    place, measured_on = options.check_train_device(device), parse_device(latency_device).text
    require_folder_place("--out", out)
    if is_bundle(out):
        raise UserError(f"--out {out} is a bundle; expected a folder of the run's own, which the bundle comes into")
    folder, bundle = StudyFolder(out), out / "bundle"
    check_target(bundle, overwrite=True)

    rules = get_protocol(protocol or default_protocol(model))
    cache = results / "cache"
    trained_on = open_dataset(
        train_images,
        scale=config.scale,
        split="train",
        data_dir=data_dir,
        cache_dir=cache,
        panoramas=training.task == "odi",
    )
    scored_on = open_dataset(
        validation,
        scale=config.scale,
        split="validation",
        data_dir=data_dir,
        cache_dir=cache,
        panoramas=rules.spherical,
    )
    refuse_overlap(trained_on, scored_on)
    options.check_training(training, trained_on, place)
    warn_of_small(trained_on, training.hr_patch_size)
    setup = TrialSetup(
        study=out.name,
        folder=folder,
        data=DataConfig(train=train_images, validation=validation, data_dir=str(data_dir) if data_dir else None),
        train=trained_on,
        validation=scored_on,
        protocol=rules,
        constraints=(),
        devices=(measured_on,),
        latency_input_size=(64, 64),
        macs_input_size=(720 // config.scale, 1280 // config.scale),
        reference=build_seeded(preset_config("swinir-light", config.scale), seed=0).eval(),
        reference_name="swinir-light",
        train_device=place,
        threads=options.resolve_threads(threads),
    )
    plan: dict[str, Any] = {
        "kinds": None if kinds is None else tuple(kind.strip() for kind in kinds.split(",")),
        "round_to": round_to,
        "rounds": rounds,
        "tune_steps": tune_steps,
        "tune_rate": tune_rate,
        "distil": distil,
        "quantise": _parse_quantisation(quantise),
    }
    asked = {
        "parent": parent.network_id,
        **_named("target", vars(target)),
        **_named("plan", plan),
        "importance": importance.value,
        "scope": scope.value,
        **_named("training", training.model_dump(mode="json")),
        "latency_device": measured_on,
    }
    compression = None if overwrite else _known_plan(out / _PLAN, asked)
    if compression is None:
        compression = _plan(target, plan, importance, scope, network, training, setup)
    routing = getattr(config, "routing", None)
    proposal = Proposal(
        "trial-00000", "trial", 0, config, training, (routing,), routing, compression=compression, parent=parent
    )
    record = _find_same_run(folder, proposal, setup, overwrite=overwrite)
    if record is not None:
        messages.print(f"note: {out} was compressed before with these settings")
    else:
        text = {"asked": asked, "compression": compression.model_dump(mode="json")}
        write_text(out / _PLAN, dumps(text, indent=1))
        try:
            with stop_on_signals() as should_stop, TrainingBar() as bar:
                record = run_trial(setup, proposal, progress=bar, should_stop=should_stop)
        except TrainingInterruptedError as interruption:
            messages.print(f"{interruption}; the same command again goes on from here")
            raise typer.Exit(INTERRUPTED) from None
    if record.state != "complete":
        messages.print(describe_record(record), markup=False)
        raise typer.Exit(1)
    assert record.compression is not None
    smaller = load_trained(folder, record, routing)
    write_bundle(
        bundle,
        smaller,
        record,
        record.points[0],
        picked_as="compressed",
        baselines={},
        licence=licence,
        quantised=find_quantised(folder, record, record.points[0]),
        overwrite=True,
        tell=note,
    )
    if json:
        print_json({"bundle": str(bundle), **record.model_dump(mode="json")})
        return
    _show(record, record.compression)
    if (file := folder.quantised_file(record)) is not None:
        console.print(f"quantised {file}")
    console.print(f"bundle   {bundle}\nnext: {command()} upscale {bundle} IMAGE OUT.png")


def _named(section: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings under the names that messages give them."""
    return {f"{section}.{name}": settings[name] for name in sorted(settings)}


def _known_plan(file: Path, asked: dict[str, Any]) -> "CompressionConfig | None":
    """Return what an earlier run of the same request came to: what was measured or tried is not measured again.

    `UserError` where the folder holds a run of another request, finished or not.
    """
    from harness.core.configs import CompressionConfig

    try:
        known = loads(file.read_text(encoding="utf-8"))
        before, plan = known["asked"], CompressionConfig.model_validate(known["compression"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that cannot be read
        return None
    here = loads(dumps(asked))
    for key in here:
        if before.get(key) != here[key]:
            there = before.get(key)
            raise UserError(
                f"{file.parent} holds a run of other settings: {key} is {there} there and {here[key]} here; {_REMEDY}"
            )
    return plan


class _Target:
    """What is to be reached: a share of a cost, or so much of it."""

    def __init__(self, cost: str, share: float | None, amount: float | None, option: str):
        self.cost, self.share, self.amount, self.option = cost, share, amount, option


def _parse_target(macs: str | None, params: str | None, latency: str | None, left: float | None, cost: str) -> _Target:
    given = {"--target-macs": macs, "--target-params": params, "--target-latency": latency}
    chosen = {option: text for option, text in given.items() if text is not None}
    if len(chosen) + (left is not None) != 1:
        told = ", ".join([*chosen, *([] if left is None else ["--left"])]) or "none"
        raise UserError(f"{told} given: expected one of --target-macs, --target-params, --target-latency and --left")
    if left is not None:
        if not 0 < left < 1:
            raise UserError(f"--left {left:g}: expected a share between 0 and 1")
        if cost not in ("macs", "params", "latency"):
            raise UserError(f"--cost {cost!r}: expected macs, params or latency")
        return _Target(cost, left, None, "--left")
    (option, text), *_ = chosen.items()
    kind = option.removeprefix("--target-")
    pattern = r"([\d.]+) ?(ms)?" if kind == "latency" else r"([\d.]+) ?([kMGT]?)"
    found = re.fullmatch(pattern, text.strip())
    try:
        amount = float(found[1]) if found else 0.0
    except ValueError:
        amount = 0.0
    if amount <= 0 or found is None:
        example = "20ms" if kind == "latency" else "500M"
        raise UserError(f"{option} {text!r}: expected a number above 0, such as {example}")
    return _Target(kind, None, amount * (1.0 if kind == "latency" else COUNTS.get(found[2], 1.0)), option)


def _refuse_study(model: str, results: Path) -> None:
    """Refuse a study, of which it is not said which point is to be compressed: a bundle says so."""
    folder = options.study_path(model, results)
    if (folder / "study.json").is_file():
        option = "" if results == Path("results") else f" --results {results}"
        raise UserError(
            f"{model} is a study; expected one of its points, as a bundle: `{command()} export {model}{option} --pick "
            f"knee` makes {folder / 'bundles' / 'knee'}"
        )


def _find_parent(model: str, weights: Path | None, scale: int | None) -> Any:
    """Return the network that is compressed, in eval mode, and where its weights are and what they are called."""
    import hashlib

    from harness.cli.target import resolve_network
    from harness.export import bundle_identity, is_bundle
    from harness.trial import Parent

    network, origin = resolve_network(model, scale, None, None, weights)
    if origin == "none needed":
        raise UserError(f"{model} has no weights, so there is nothing to compress; expected a CAMixerSR or SwinIR")
    if origin == "untrained":
        raise UserError(f"{model} is untrained: there is nothing to compress; expected a bundle, or give --weights")
    path = Path(model)
    if is_bundle(path):
        return network, Parent(bundle_identity(path), path / "model.safetensors")
    assert weights is not None
    return network, Parent(hashlib.sha256(weights.read_bytes()).hexdigest()[:12], weights)


def _find_training(model: str, settings: dict[str, Any]) -> "TrainingConfig":
    """Return how the network was trained, where its bundle says, with `--set` replacing."""
    from harness.core.configs import TrainingConfig, parse_config
    from harness.export import is_bundle, read_bundle_metrics

    known = read_bundle_metrics(Path(model)).training if is_bundle(Path(model)) else None
    base = {} if known is None else known.model_dump()
    return parse_config(TrainingConfig, {**base, **settings}, "--set")


def _plan(
    target: _Target,
    plan: dict[str, Any],
    importance: ImportanceName,
    scope: ScopeName,
    network: Any,
    training: "TrainingConfig",
    setup: "TrialSetup",
) -> "CompressionConfig":
    """Return what is to be done: the target as a share, and what `auto` comes to."""
    from harness.compression import find_groups
    from harness.core.configs import CompressionConfig, parse_config
    from harness.trial import choose_best, least_cost, measure_whole
    from harness.trial.quantisation import check_images

    if not hasattr(network.config, "widths"):
        raise UserError(f"{network.config.label()} has no channels to remove; expected CAMixerSR or SwinIR")
    find_groups(network.config, plan["kinds"])
    base = parse_config(CompressionConfig, {"left": 0.5, **plan, "cost": target.cost}, "compress")
    if base.quantise is not None:
        check_images(base.quantise, setup.train, setting="--quantise", source="--train images")
    share = target.share
    if target.cost != "latency":
        whole, least = least_cost(network.config, base, setup.macs_input_size)
        amount = share * whole if share is not None else target.amount
        assert amount is not None
        if not least <= amount < whole:
            known = (
                f"the network has {format_count(whole)}, of which {format_count(least)} are left when all channels go"
            )
            raise UserError(
                f"{target.option} asks for {_name(amount, target.cost)}: {known} that may; expected "
                f"{_range(least, whole, share)}"
            )
        share = amount / whole
    elif share is None:
        assert target.amount is not None
        whole_ms = measure_whole(network, setup)
        if target.amount >= whole_ms:
            raise UserError(
                f"--target-latency {target.amount:g} ms: the network takes {whole_ms:.3g} ms on {setup.devices[0]} as "
                "it is; expected a smaller target"
            )
        share = round(target.amount / whole_ms, 4)
    by_latency = target.cost == "latency"
    importances = ["taylor"] if by_latency else ["taylor", "group-norm"]
    scopes = ["measured"] if by_latency else ["global", "uniform"]
    candidates = [
        base.model_copy(update={"left": share, "importance": one, "scope": other})
        for one in (importances if importance is ImportanceName.AUTO else [importance.value])
        for other in (scopes if scope is ScopeName.AUTO else [scope.value])
    ]
    if len(candidates) == 1:
        return candidates[0]
    chosen, scores_db = choose_best(network, candidates, training, setup)
    told = ", ".join(
        f"{one.importance} {one.scope} {format_number(db, 2)} dB" for one, db in zip(candidates, scores_db, strict=True)
    )
    messages.print(f"on training crops, before tuning: {told}")
    return chosen


def _name(amount: float, cost: str) -> str:
    """Write an amount with its unit, such as '718.29 M MACs'."""
    return f"{format_count(amount)} {'MACs' if cost == 'macs' else 'parameters'}".replace("  ", " ")


def _range(least: float, whole: float, share: float | None) -> str:
    """Say what can be asked for, as a share where that was asked for."""
    if share is not None:
        return f"a share of at least {math.ceil(1e3 * least / whole) / 1e3:g}, below 1"
    return f"at least {format_count(least)}, and less than {format_count(whole)}"


def _parse_quantisation(text: str | None) -> Any:
    """Return the settings of `--quantise`: a method alone, or all of them."""
    import yaml

    if text is None:
        return None
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--quantise {text!r}: expected a method, or settings such as {{method: minmax}}") from None
    return found if isinstance(found, dict) else {"method": found}


def _find_same_run(folder: Any, proposal: "Proposal", setup: "TrialSetup", *, overwrite: bool) -> "TrialRecord | None":
    """Return the record of the same run where it was finished; `UserError` where the folder holds another run."""
    if folder.study_file.exists() or folder.database.exists():
        raise UserError(f"--out {folder.path} is the folder of a search, expected one of this run's own")
    record: TrialRecord | None = next(folder.read_trials(), None)
    if record is None or overwrite:
        return None
    if record.network_id != proposal.network_id(setup.data):
        raise UserError(f"{folder.path} holds a run of other settings; {_REMEDY}")
    if record.state != "complete":
        return None
    point = record.points[0]
    there, here = (point.evaluation.protocol, point.latency[0].device), (setup.protocol.name, setup.devices[0])
    if there != here:
        raise UserError(
            f"{folder.path} holds a run with protocol {there[0]} and latency on {there[1]}, here {here[0]} and "
            f"{here[1]}; {_REMEDY}"
        )
    return record


def _show(record: "TrialRecord", chain: "CompressionRecord") -> None:
    """Print the stages, and what came out."""
    first = chain.stages[0]
    rows = []
    for stage in chain.stages:
        latencies, point = stage.latency, record.produced[0]
        if stage.kind == "quantise":  # its own is that of a tile, beside the float file
            latencies = point.latency if point.quantised is not None else ()
        latency = latencies[0] if latencies else None
        rows.append(
            [
                stage.name,
                format_number(stage.psnr_db, 3),
                format_number(stage.psnr_db - first.psnr_db, 3),
                format_count(stage.macs),
                format_count(stage.params),
                format_number(None if latency is None else latency.median, 2),
                format_number(None if latency is None else latency.ratio, 3),
            ]
        )
    plan = chain.config
    print_table(
        f"{chain.model.label()}, pruned by {plan.importance}, {plan.scope}, to {plan.left:.1%} of its {plan.cost}",
        ["stage", "PSNR (dB)", "change", "MACs", "parameters", "latency (ms)", "/ SwinIR-light"],
        rows,
    )
    widths = ", ".join(f"{kind} {count} of {first.widths[kind]}" for kind, count in chain.stages[-1].widths.items())
    console.print(f"channels left, summed over blocks: {widths}")
    last, before = chain.stages[-1], chain.stages[-2:][0]
    if last.kind == "quantise" and last.latency:
        console.print(
            f"quantised: {format_number(last.psnr_db - before.psnr_db, 3)} dB, "
            f"{format_number(last.latency[0].ratio, 2)} of the latency of the same network in float in "
            f"{last.latency[0].runtime}"
        )
    console.print(describe_record(record), markup=False)
