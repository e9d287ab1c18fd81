"""The search space: what a study varies, what stays fixed, what is wanted. Read from YAML, strictly.

A dimension's name is a path into the configs: `model.channels`, `training.learning_rate`, `routing.gamma`,
`routing.policy`. γ and policy are dimensions of points, not of networks: a network is trained once and evaluated at
every γ and policy of the space.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from harness.core.conditions import parse_conditions
from harness.core.configs import (
    KINDS,
    PAPER_RECIPE,
    AnyModelConfig,
    BicubicConfig,
    BudgetConfig,
    CalibratedPolicy,
    CalibrationConfig,
    CAMixerSRConfig,
    CompressionConfig,
    CustomConfig,
    DataConfig,
    DistillationConfig,
    FrozenConfig,
    QuantisationConfig,
    RoutingConfig,
    Scale,
    StoppingConfig,
    SwinIRConfig,
    Task,
    TrainingConfig,
    UnitInterval,
    nest,
    parse_config,
    parse_model_config,
)
from harness.core.constraints import Constraint, parse_constraint, parse_metric
from harness.core.errors import UserError, describe_finding
from harness.core.factories import find_code, with_code
from harness.core.given import read_given
from harness.core.records import METRIC_DIRECTIONS, ObjectiveConfig, StudyRecord
from harness.metrics import get_protocol
from harness.search.yaml_lines import KeyPath, LocatedYaml, parse_yaml, read_yaml

Scalar = bool | int | float | str | None
Values = dict[str, Any]
ROUTING_DIMENSIONS = ("routing.gamma", "routing.policy")
_SIZE = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], "height, width"]


# What the baselines must share with the networks that they are compared with.
_SAME_FOR_ALL = frozenset({"steps", "batch_size", "hr_patch_size", "augment", "seed", "recipe", "task"})

_DISTILLED = ("teacher", "weight", "features", "feature_weight")  # settings of a section that may be dimensions


class Dimension(FrozenConfig):
    """One dimension: `choices`, or `low` to `high` (whole numbers when all are) with `step`, or `log` without one.

    `when` names earlier dimensions and the values of theirs under which this one is varied; otherwise it keeps its
    fixed setting.
    """

    choices: tuple[Any, ...] | None = None
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    when: dict[str, tuple[Any, ...]] = {}

    @field_validator("low", "high", "step", mode="before")
    @classmethod
    def _read_exponents(cls, value: Any) -> Any:
        try:  # YAML 1.1 reads 1e-3 as text
            return float(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("expected a number") from None

    @model_validator(mode="after")
    def _is_choices_or_range(self) -> Self:
        is_range = self.low is not None or self.high is not None
        if (self.choices is None) != is_range:
            raise ValueError("expected either `choices`, or `low` and `high`")
        if self.choices is not None:
            if not self.choices or self.step is not None or self.log:
                raise ValueError("`choices` needs at least one value, and goes without `step` and `log`")
            if len({encode(choice) for choice in self.choices}) != len(self.choices):
                raise ValueError("`choices` holds a value twice")
            return self
        if self.low is None or self.high is None or self.low > self.high:
            raise ValueError("a range needs `low` ≤ `high`")
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError("`log` needs `low` > 0 and goes without `step`")
        if self.step is not None:
            if self.step <= 0:
                raise ValueError("`step` must be > 0")
            steps = (self.high - self.low) / self.step
            if abs(steps - round(steps)) > 1e-6:
                raise ValueError(f"`high` must be `low` and a whole number of steps; {self.high:g} is never reached")
        return self

    @property
    def is_integer(self) -> bool:
        """Whether the range runs over whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    def values(self) -> tuple[Any, ...] | None:
        """Return all values where they can be listed, else None."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        step = self.step or (1 if self.is_integer and not self.log else None)
        if step is None:
            return None
        count = round((self.high - self.low) / step) + 1
        grid = (self.low + index * step for index in range(count))
        return tuple(grid) if self.is_integer else tuple(round(value, 10) for value in grid)

    @property
    def first(self) -> Any:
        """The first value."""
        return self.choices[0] if self.choices is not None else self.low

    def contains(self, value: Any) -> bool:
        """Whether a value belongs to the dimension."""
        listed = self.values()
        if listed is not None:
            return encode(value) in {encode(known) for known in listed}
        assert self.low is not None
        assert self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high


def encode(value: Any) -> Scalar:
    """Turn a choice into what a sampler can hold: lists become compact JSON text, whole floats the same number."""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, float) and not isinstance(value, bool):
        return round(value, 10)
    result: Scalar = value
    return result


class SpaceData(FrozenConfig):
    """Where the images come from and how they are scored."""

    train: str = "demo"
    validation: str = "demo"
    data_dir: str | None = None
    protocol: str = "light"

    @field_validator("protocol")
    @classmethod
    def _is_known(cls, protocol: str) -> str:
        return get_protocol(protocol).name


class ProfileConfig(FrozenConfig):
    """How points are measured. Sizes are low-resolution (height, width); MACs default to a 1280×720 output.

    `devices` are conditions: `cpu:1`, `cpu:1/bf16`, `cuda:0/compile/fp16/180x320`; the size is `latency_input_size`
    where none is given. `process`: `fresh` measures a network in a process of its own, as `harness profile` does;
    `shared` in that of the search, which saves seconds for each network.
    """

    devices: Annotated[tuple[str, ...], Field(min_length=1)] = ("cpu:1",)
    latency_input_size: _SIZE = (64, 64)
    macs_input_size: _SIZE | None = None
    min_repeats: Annotated[int, Field(ge=3)] = 10
    min_seconds: Annotated[float, Field(ge=0)] = 1.0
    process: Literal["fresh", "shared"] = "fresh"

    @model_serializer(mode="wrap")
    def _leave_out_the_default_process(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write `process` only where it is not `fresh`: identities are kept."""
        values: dict[str, Any] = handler(self)
        if self.process == "fresh":
            values.pop("process", None)
        return values

    @field_validator("devices")
    @classmethod
    def _complete_devices(cls, devices: tuple[str, ...]) -> tuple[str, ...]:
        # Whether they are there shows when they are used: a space is read on other machines too.
        parsed = [parse_conditions(device) for device in devices]
        sized = {found._replace(input_size=None) for found in parsed if found.input_size is not None}
        for found in parsed:
            if found in sized:
                raise ValueError(f"{found.text} stands with a size and without; give each a size")
        completed = tuple(found.text for found in parsed)
        if len(set(completed)) != len(completed):
            raise ValueError("the same device stands twice")
        return completed


class SamplerConfig(FrozenConfig):
    """Which sampler proposes.

    `startup_networks` random ones come first: by default 6 with ehvi, which spreads them over costs, and 10 with tpe
    and gp. `population_size` is that of nsga2 and nsga3.
    """

    name: Literal["ehvi", "tpe", "nsga2", "nsga3", "gp", "qmc", "random", "grid"] = "ehvi"
    startup_networks: Annotated[int, Field(ge=1)] | None = None
    population_size: Annotated[int, Field(ge=2)] = 20

    @property
    def startup(self) -> int:
        """Random networks that come first."""
        return self.startup_networks or (6 if self.name == "ehvi" else 10)


class RoutingSettings(FrozenConfig):
    """The routing of points where it is no dimension."""

    gamma: UnitInterval = 0.5
    policy: Literal["fixed", "probability", "threshold"] = "fixed"


class SearchSpace(FrozenConfig):
    """A whole search space, validated.

    `task: odi` is for whole panoramas: loss and score (protocol `odi`, then the default) are weighted by latitude.
    `calibrate` gives each trained network further points, whose routings are calibrated on its training images.
    `stopping` ends the training of networks that fall behind others at rungs. `compression` holds settings of
    `CompressionConfig`: every trained network is pruned and trained on, and its points are those of what comes out. Of
    one that is quantised these are points of the network in float and points of its files, which are what samplers are
    told of.
    """

    description: str = ""
    scale: Scale
    task: Task = "classic"
    data: SpaceData = SpaceData()
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    baseline_training: dict[str, Any] = {}
    routing: RoutingSettings = RoutingSettings()
    dimensions: Annotated[dict[str, Dimension], Field(min_length=1)]
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)]
    constraints: tuple[Annotated[str, AfterValidator(lambda text: parse_constraint(text).name)], ...] = ()
    profile: ProfileConfig = ProfileConfig()
    sampler: SamplerConfig = SamplerConfig()
    budget: BudgetConfig = BudgetConfig()
    calibrate: CalibrationConfig | None = None
    stopping: StoppingConfig | None = None
    compression: dict[str, Any] = {}
    baselines: tuple[Literal["bicubic", "swinir-light"], ...] = ("bicubic", "swinir-light")
    enqueue: tuple[dict[str, Any], ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _score_panoramas_by_latitude(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") == "odi" and isinstance(values.get("data", {}), dict):
            return {**values, "data": {"protocol": "odi", **values.get("data", {})}}
        return values

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_asked_for(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write `task` only where it is not `classic`, and sections only where they stand: identities are kept."""
        values: dict[str, Any] = handler(self)
        if self.task == "classic":
            values.pop("task", None)
        for section in ("calibrate", "stopping"):
            if getattr(self, section) is None:
                values.pop(section, None)
        if not self.compression:
            values.pop("compression", None)
        return values

    @model_validator(mode="before")
    @classmethod
    def _take_a_sampler_that_needs_no_costs(cls, values: Any) -> Any:
        """`ehvi` asks for the costs of thousands of networks at each step, which a user's own would be built for."""
        if (
            isinstance(values, dict)
            and isinstance(values.get("model"), dict)
            and values["model"].get("family") == "custom"
        ):
            sampler = values.get("sampler", {})
            if isinstance(sampler, dict):
                return {**values, "sampler": {"name": "tpe", **sampler}}
        return values

    @field_validator("objectives", mode="before")
    @classmethod
    def _complete_objectives(cls, objectives: Any) -> Any:
        if not isinstance(objectives, list | tuple):
            return objectives
        completed = []
        for objective in objectives:
            entry = {"metric": objective} if isinstance(objective, str) else objective
            if isinstance(entry, dict) and isinstance(entry.get("metric"), str):
                natural = METRIC_DIRECTIONS[parse_metric(entry["metric"]).partition("/")[0]]
                entry = {"direction": natural, **entry}
            completed.append(entry)
        metrics = [entry.get("metric") for entry in completed if isinstance(entry, dict)]
        if len(set(metrics)) != len(metrics):
            raise ValueError("the same metric stands twice")
        return completed

    def parsed_constraints(self) -> tuple[Constraint, ...]:
        """Return the constraints, parsed."""
        return tuple(parse_constraint(text) for text in self.constraints)

    @property
    def macs_input_size(self) -> tuple[int, int]:
        """Low-resolution (height, width) that MACs are counted for."""
        return self.profile.macs_input_size or (720 // self.scale, 1280 // self.scale)

    @property
    def data_config(self) -> DataConfig:
        """What networks are trained and validated on."""
        return DataConfig(train=self.data.train, validation=self.data.validation, data_dir=self.data.data_dir)

    def training_config(self, values: Mapping[str, Any] | None = None) -> TrainingConfig:
        """Return the training under dimension `values` (`training.*`), fixed settings elsewhere."""
        settings = dict(self.training)
        recipe = settings.pop("recipe", None)
        if recipe not in (None, "paper"):
            raise UserError(f"training.recipe: unknown recipe {recipe!r}; expected 'paper', or no recipe at all")
        base = {**(PAPER_RECIPE.model_dump() if recipe == "paper" else {}), "seed": self.seed}
        varied = {**_part(values, "training."), "task": self.task}
        return parse_config(TrainingConfig, nest(varied, {**base, **settings}), "training")

    def baseline_training_config(self) -> TrainingConfig:
        """Return the training of the baselines: the fixed settings, `baseline_training` winning over them."""
        changed = self.training_config().model_dump() | self.baseline_training
        return parse_config(TrainingConfig, changed, "baseline_training")

    def teachers(self) -> tuple[str, ...]:
        """Return the bundles that networks of the space may learn from, each once."""
        fixed = (self.training_config().distillation, self.baseline_training_config().distillation)
        found = [distillation.teacher for distillation in fixed if distillation is not None]
        for name in ("training.distillation", "training.distillation.teacher"):
            choices = self.dimensions[name].choices if name in self.dimensions else None
            found += [one["teacher"] if isinstance(one, dict) else one for one in choices or () if one is not None]
        return tuple(dict.fromkeys(found))

    def model_config_for(self, values: Mapping[str, Any] | None = None) -> AnyModelConfig:
        """Return the model under dimension `values` (`model.*`), fixed settings elsewhere, routing at its default."""
        settings = {"family": "camixersr", **self.model, "scale": self.scale}
        return with_code(parse_model_config(nest(_part(values, "model."), settings), "model"))

    @property
    def compresses(self) -> bool:
        """Whether trained networks are compressed, some of them at least."""
        return bool(self.compression) or any(name.startswith("compression.") for name in self.dimensions)

    def compression_config(self, values: Mapping[str, Any] | None = None) -> CompressionConfig | None:
        """Return what is done to a trained network under dimension `values` (`compression.*`), None for nothing."""
        settings = nest(_part(values, "compression."), self.compression)
        if not settings:
            return None
        config = parse_config(CompressionConfig, settings, "compression")
        known = KINDS[str(self.model.get("family", "camixersr"))]
        for kind in config.kinds or ():
            if kind not in known:
                raise UserError(f"compression: no channels {kind!r}; expected some of {', '.join(known)}")
        return None if config.changes_nothing else config

    def quantisations(self) -> tuple[QuantisationConfig, ...]:
        """Return how networks of the space may be quantised, as far as choices are listed one by one."""
        if not self.compresses:
            return ()
        named = [name for name in self.dimensions if name.partition(".quantise")[0] == "compression"]
        found = []
        for name in named or [""]:
            for value in (self.dimensions[name].values() or (self.dimensions[name].first,)) if name else (None,):
                plan = self.compression_config({"compression.left": 0.5, **({name: value} if name else {})})
                if plan is not None and plan.quantise is not None:
                    found.append(plan.quantise)
        return tuple(dict.fromkeys(found))

    def routing_config(self, values: Mapping[str, Any]) -> RoutingConfig:
        """Return the routing under dimension `values`; `threshold` ignores γ, so it always carries the default."""
        settings = {**self.routing.model_dump(), **_part(values, "routing.")}
        if settings["policy"] == "threshold":
            return RoutingConfig(policy="threshold")
        return parse_config(RoutingConfig, settings, "routing")

    @property
    def routes(self) -> bool:
        """Whether the space's networks route, so that each has a point for every γ and policy."""
        return str(self.model.get("family", "camixersr")) == "camixersr"

    def routings(self) -> tuple[RoutingConfig, ...]:
        """Return every routing that each trained network is evaluated at: all γ for all policies, each once."""
        listed = [self.dimensions[name].values() if name in self.dimensions else None for name in ROUTING_DIMENSIONS]
        gammas = listed[0] or (self.routing.gamma,)
        policies = listed[1] or (self.routing.policy,)
        found = [
            self.routing_config({"routing.gamma": gamma, "routing.policy": policy})
            for policy, gamma in itertools.product(policies, gammas)
        ]
        return tuple(dict.fromkeys(found))

    def identity(self) -> str:
        """Return the hash of what makes results comparable: not of description, budget, sampler, stopping and queue."""
        compared = self.model_dump(exclude={"description", "budget", "enqueue", "sampler", "stopping"})
        compared["data"] |= self.data_config.model_dump()  # without credentials, which may change
        if self.model.get("family") == "custom":
            compared["model"] = {**self.model, "code": find_code(self.model["factory"])}
        first_default = {"name": "tpe", "startup_networks": 10}  # stands in all identities
        return SearchSpace.model_validate({**compared, "budget": {}, "sampler": first_default}).config_hash()


def _part(values: Mapping[str, Any] | None, prefix: str) -> Values:
    return {name.removeprefix(prefix): value for name, value in (values or {}).items() if name.startswith(prefix)}


def load_space(located: LocatedYaml) -> SearchSpace:
    """Validate a space; every finding names file, line, what is wrong and what is allowed."""
    try:
        space = SearchSpace.model_validate(located.values)
    except ValidationError as error:
        raise _locate(located, error.errors()[0]) from None
    _check_settings(located, space)
    for name, dimension in space.dimensions.items():
        _check_dimension(located, space, name, dimension)
    for index, entry in enumerate(space.enqueue):
        for name, value in entry.items():
            if name not in space.dimensions:
                raise located.error(("enqueue", index, name), f"no such dimension; known: {_list(space.dimensions)}")
            if not space.dimensions[name].contains(value):
                raise located.error(("enqueue", index, name), f"{value!r} is not in the dimension")
    named = [("objectives", index, objective.metric) for index, objective in enumerate(space.objectives)]
    named += [("constraints", index, constraint.metric) for index, constraint in enumerate(space.parsed_constraints())]
    for section, index, metric in named:
        device = metric.partition("/")[2]
        if device and _canonical(device) not in space.profile.devices:
            raise located.error(
                (section, index),
                f"{metric!r} names a device that is not in profile.devices: {_list(space.profile.devices)}",
            )
    _check_quantisation(located, space)
    if space.sampler.name == "grid":
        endless = [name for name, dimension in space.dimensions.items() if dimension.values() is None]
        if endless:
            raise located.error(("dimensions", endless[0]), "the grid sampler needs `choices` or a `step`")
    return space


def _check_quantisation(located: LocatedYaml, space: SearchSpace) -> None:
    """Refuse what a quantised network could have no value of: its file runs on the CPU, and restores tiles."""
    if not space.quantisations():
        return
    where: KeyPath = ("compression",) if "quantise" in space.compression else ("dimensions",)
    if get_protocol(space.data.protocol).spherical:
        raise located.error(
            where, f"quantised files restore tiles, which protocol {space.data.protocol} for whole panoramas cuts"
        )
    named = [objective.metric for objective in space.objectives]
    named += [constraint.metric for constraint in space.parsed_constraints()]
    needed = {metric.partition("/")[2] for metric in named if metric[:7] == "latency"} - {""}
    needed.add(space.profile.devices[0])  # by which reports sort all points
    elsewhere = sorted(one for one in needed if not parse_conditions(one).device.startswith("cpu"))
    if elsewhere:
        raise located.error(
            where,
            f"quantised files run on the CPU, so that they have no latency on {elsewhere[0]}; expected cpu:THREADS as "
            "the first of profile.devices, and in objectives and constraints",
        )


def _check_stopping(located: LocatedYaml, space: SearchSpace) -> None:
    """Refuse early stopping that would stop no network, because the longest training is over before it begins."""
    if space.stopping is None or space.stopping.grace_steps is None or space.stopping.fidelity == "images":
        return
    steps = [space.training_config().steps]
    if "training.steps" in space.dimensions:
        varied = space.dimensions["training.steps"]
        steps = [int(one) for one in varied.choices or (varied.high,)]
    if space.stopping.grace_steps >= max(steps):
        raise located.error(
            ("stopping", "grace_steps"),
            f"{space.stopping.grace_steps} steps are not before the end of training, after {max(steps)}, so that no "
            "network would be stopped; give fewer, or leave `stopping` out",
        )


def _canonical(conditions: str) -> str:
    try:
        return parse_conditions(conditions).text
    except UserError:  # which none of the space's devices is, either
        return conditions


def _check_settings(located: LocatedYaml, space: SearchSpace) -> None:
    """Check the fixed settings of model and training against their configs."""
    if "scale" in space.model:
        raise located.error(("model", "scale"), "the scale stands at the top level")
    if "routing" in space.model:
        raise located.error(("model", "routing"), "the routing stands at the top level")
    if "task" in space.training:
        raise located.error(("training", "task"), "the task stands at the top level")
    if space.task == "odi" and space.data.protocol != "odi":
        raise located.error(("data", "protocol"), "task odi is scored by latitude; expected odi, or no protocol at all")
    for key in _SAME_FOR_ALL & space.baseline_training.keys():
        raise located.error(("baseline_training", key), "baselines train on the same images for the same steps")
    for section, build in (
        ("model", space.model_config_for),
        ("training", space.training_config),
        ("baseline_training", space.baseline_training_config),
    ):
        try:
            build()
        except UserError as error:
            raise located.error(*_blame(located, section, str(error))) from None
    if space.compresses and str(space.model.get("family", "camixersr")) not in KINDS:
        raise located.error(("compression",), "channels are removed of camixersr and swinir, not of others")
    if space.compression and "compression.left" not in space.dimensions and "left" not in space.compression:
        raise located.error(
            ("compression",), "`left` is missing: say what share of `cost` is left, here or as dimension"
        )
    if space.compresses:
        first = {
            name: dimension.first for name, dimension in space.dimensions.items() if name[:5] in ("compr", "model")
        }
        try:
            space.compression_config({"compression.left": space.compression.get("left", 0.5), **first})
        except UserError as error:
            raise located.error(*_blame(located, "compression", str(error))) from None
    if space.model.get("family") == "bicubic":
        raise located.error(("model", "family"), "bicubic has nothing to search; expected another")
    if space.model.get("family") == "custom" and space.sampler.name == "ehvi":
        raise located.error(("sampler", "name"), "ehvi needs costs in closed form, which custom networks have not")
    if space.calibrate is not None and not space.routes:
        raise located.error(("calibrate",), f"{space.model['family']} does not route, so there is nothing to calibrate")
    if space.training.get("recipe") is None and "steps" not in space.training:
        remedy = "say how long to train, or take `recipe: paper`"
        if "training.steps" in space.dimensions:
            remedy = "say how long the baselines are trained; the dimension wins over it"
        raise located.error(("training",), f"`steps` is missing: {remedy}")


def _blame(located: LocatedYaml, section: str, message: str) -> tuple[KeyPath, str]:
    """Find the key of a section that a message is about."""
    settings = located.values.get(section)
    message = message.removeprefix(f"{section}: ").replace("Input should be a valid tuple", "expected a list")
    for family in _FAMILIES:
        message = message.removeprefix(f"{family}.")
    for key in settings if isinstance(settings, dict) else ():
        if re.match(rf"({section}\.)?{key}\b", message):
            text = message.removeprefix(f"{section}.").removeprefix(f"{key}: ")
            return (section, key), _with_allowed(text, section, located)
    if "tag 'family'" in message or "using 'family'" in message:
        return (
            section,
            "family",
        ), f"expected camixersr, swinir or custom (got {located.values[section].get('family')!r})"
    return (section,), message


def _with_allowed(message: str, section: str, located: LocatedYaml) -> str:
    if "unknown key" not in message:
        return message
    if message.startswith("distillation."):
        return f"{message.removeprefix('distillation.')}; allowed: {_list(DistillationConfig.model_fields)}"
    fields = _fields(section, str(located.values.get("model", {}).get("family", "camixersr")))
    return f"unknown key; allowed: {_list(fields)}"


_FAMILIES: dict[str, type[BaseModel]] = {
    "camixersr": CAMixerSRConfig,
    "swinir": SwinIRConfig,
    "bicubic": BicubicConfig,
    "custom": CustomConfig,
}


def _fields(section: str, family: str) -> list[str]:
    config: type[BaseModel] = TrainingConfig
    if section == "model":
        config = _FAMILIES.get(family, CAMixerSRConfig)
    elif section == "compression":
        config = CompressionConfig
    hidden = {
        "model": {"scale", "routing", "widths", "code"},
        "training": {"task"},
        "baseline_training": _SAME_FOR_ALL,
    }.get(section, set())
    extra = ["recipe"] if section == "training" else []
    return [name for name in config.model_fields if name not in hidden] + extra


_BUILDERS: dict[str, Callable[[SearchSpace, Values], object]] = {
    "model": SearchSpace.model_config_for,
    "training": SearchSpace.training_config,
    "compression": SearchSpace.compression_config,
}


def _check_dimension(located: LocatedYaml, space: SearchSpace, name: str, dimension: Dimension) -> None:
    """Check one dimension: its name, every value of it, and its condition."""
    path: KeyPath = ("dimensions", name)
    section, _, setting = name.partition(".")
    family = str(space.model.get("family", "camixersr"))
    if section == "routing":
        allowed = ["gamma", "policy"] if family == "camixersr" else []
    elif section in ("model", "training", "compression"):
        allowed = [known for known in _fields(section, family) if known not in ("family", "recipe")]
        allowed += [f"distillation.{known}" for known in _DISTILLED] if section == "training" else []
        allowed += (
            [f"quantise.{known}" for known in QuantisationConfig.model_fields] if section == "compression" else []
        )
    else:
        raise located.error(path, "expected a name that begins with model., training., compression. or routing.")
    if family == "custom" and section == "model" and setting.startswith("settings."):
        allowed.append(setting)  # which its factory knows, and says
    if setting not in allowed:
        raise located.error(path, f"no such setting; allowed: {_list(f'{section}.{known}' for known in allowed)}")
    listed = dimension.values()
    if section == "routing" and listed is None:
        raise located.error(path, "needs `choices` or a `step`: every network is evaluated at each value")
    for value in listed if listed is not None else (dimension.low, dimension.high):
        try:
            if section == "routing":
                RoutingSettings.model_validate({setting: value})
            else:
                _BUILDERS[section](
                    space, {"compression.left": 0.5, name: value} if section == "compression" else {name: value}
                )
        except ValidationError as error:
            hint = (
                "; it is calibrated on trained networks: see `calibrate`" if value in get_args(CalibratedPolicy) else ""
            )
            raise located.error(path, f"{describe_finding(error.errors()[0])}{hint}") from None
        except UserError as error:
            message = str(error).removeprefix(f"{section}: ").removeprefix(f"{family}.").removeprefix(f"{setting}: ")
            message = message.replace("Input should be a valid tuple", "expected a list")
            raise located.error(path, message) from None
    names = list(space.dimensions)
    for other, values in dimension.when.items():
        if other not in names or names.index(other) >= names.index(name) or other in ROUTING_DIMENSIONS:
            earlier = [known for known in names[: names.index(name)] if known not in ROUTING_DIMENSIONS]
            raise located.error((*path, "when", other), f"expected an earlier dimension: {_list(earlier) or 'none'}")
        for value in values:
            if not space.dimensions[other].contains(value):
                raise located.error((*path, "when", other), f"{value!r} is not a value of that dimension")
    if section == "routing" and dimension.when:
        raise located.error((*path, "when"), "γ and policy are varied for every network, so they take no condition")
    if name == "routing.gamma" and space.routing.policy == "threshold" and "routing.policy" not in space.dimensions:
        raise located.error(path, "routing.policy is threshold, which ignores γ")


_EXPECTED = {
    "tuple_type": "expected a list",
    "dict_type": "expected settings, `key: value`",
    "model_type": "expected settings, `key: value`",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
}


def _locate(located: LocatedYaml, finding: Any) -> UserError:
    """Turn a pydantic finding into an error with file and line; an unknown key comes with the allowed ones."""
    path = tuple(part for part in finding["loc"] if isinstance(part, str | int))
    if finding["type"] == "extra_forbidden":
        return located.error(path, f"unknown key; allowed: {_list(_allowed_at(path[:-1]))}")
    if finding["type"] == "missing":
        return located.error(path, "required key is missing")
    if path[0] == "dimensions" and path[-1] in ("int", "float"):  # which of a number's kinds was tried
        path, finding = path[:-1], {**finding, "type": "float_type"}
    message = _EXPECTED.get(finding["type"]) or str(finding["msg"]).removeprefix("Value error, ")
    return located.error(path, f"{message} (got {finding['input']!r})")


def _allowed_at(path: KeyPath) -> list[str]:
    if not path:
        return list(SearchSpace.model_fields)
    sections: dict[str | int, type[BaseModel]] = {
        "data": SpaceData,
        "profile": ProfileConfig,
        "sampler": SamplerConfig,
        "budget": BudgetConfig,
        "calibrate": CalibrationConfig,
        "stopping": StoppingConfig,
        "routing": RoutingSettings,
        "objectives": ObjectiveConfig,
        "dimensions": Dimension,
    }
    return list(sections[path[0]].model_fields) if path[0] in sections else []


def _list(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names)


def presets_dir() -> Path:
    """Return the folder of the preset spaces: the repository's own, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def preset_names() -> list[str]:
    """Return the names of the preset spaces."""
    return sorted(path.stem for path in presets_dir().glob("*.yaml"))


def find_space(name_or_path: str) -> Path:
    """Return the YAML file of a preset's name or of a path; `UserError` lists the presets."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    preset = presets_dir() / f"{name_or_path}.yaml"
    if "/" not in name_or_path and preset.is_file():
        return preset
    raise UserError(f"no search space {name_or_path!r}: expected a YAML file or a preset ({_list(preset_names())})")


def read_space(path: Path, overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """Read a space; `overrides` maps dotted keys (`budget.networks`, `data.train`) to values that win over the file."""
    located = read_yaml(path)
    space = _override(located, overrides or {})
    _check_stopping(located, space)
    return space


def read_study_space(record: StudyRecord) -> SearchSpace:
    """Return the space that a study was begun with, from its record."""
    source = f"the space of study {record.name!r}"
    return _override(parse_yaml(record.space, source), read_given(record.space))


def _override(located: LocatedYaml, overrides: Mapping[str, Any]) -> SearchSpace:
    for dotted, value in overrides.items():
        parts = dotted.split(".", 1 if dotted.startswith("dimensions.") else -1)
        target = located.values
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {dotted}: {part} holds no settings")
        target[parts[-1]] = value
        located.override(tuple(parts))
    return load_space(located)
