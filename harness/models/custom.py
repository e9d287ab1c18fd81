"""Networks of users' own: what a function of theirs returns, kept to the contract of all networks here."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.configs import CustomConfig
from harness.core.errors import UserError, describe_error
from harness.core.factories import FactoryPlace, find_code, find_factory, let_import_from
from harness.models.bicubic import upscale_bicubic
from harness.models.network import AnyGenerator, Restoration, SRNetwork
from harness.models.padding import pad_to_multiple


class CustomNetwork(SRNetwork):
    """What a factory of a user's returns for the settings of a config.

    Images are padded at right and bottom by reflection where the config says that sides must be multiples of something,
    and cropped again. Raises `UserError` where the factory fails, and where what it returns gives images of another
    size than scale times the input's.
    """

    def __init__(self, config: CustomConfig):
        super().__init__()
        self.config: CustomConfig = config
        place = find_factory(config.factory)
        if config.code is not None and find_code(config.factory) != config.code:
            raise UserError(
                f"{config.factory} is not the code that this network was made with: its file has changed; bring that "
                "one back, or begin with another study"
            )
        with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no part of a command's output
            factory = import_factory(place, config.factory)
            self.network = call_factory(factory, config.factory, _arguments(factory, config))

    def restore(self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None) -> Restoration:
        """Restore a batch; nothing is routed."""
        batch, _, height, width = input_BCHW.shape
        image_BCHW = self.network(pad_to_multiple(input_BCHW, self.config.multiple_of))
        padded = [-(-side // self.config.multiple_of) * self.config.multiple_of for side in (height, width)]
        expected = (batch, 3, *(self.scale * side for side in padded))
        if not isinstance(image_BCHW, Tensor) or image_BCHW.shape != expected:
            got = tuple(image_BCHW.shape) if isinstance(image_BCHW, Tensor) else type(image_BCHW).__name__
            raise UserError(
                f"{self.config.label()} makes {got} of a batch of {(batch, 3, *padded)}; expected {expected}, "
                f"{self.scale} times its height and width"
            )
        image_BCHW = image_BCHW[..., : self.scale * height, : self.scale * width]
        if self.config.image_residual:
            image_BCHW = image_BCHW + upscale_bicubic(input_BCHW, self.scale)
        return Restoration(image_BCHW, torch.zeros(0, batch, device=input_BCHW.device))


def _arguments(factory: Any, config: CustomConfig) -> dict[str, Any]:
    """Return what a factory is called with; `UserError` for a setting that it has no parameter for."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # which has none that could be asked for
        return dict(config.settings)
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [name for name in config.settings if name not in parameters and not takes_all]
    if unknown:
        known = ", ".join(name for name in parameters if name != "scale") or "none"
        raise UserError(f"{config.factory} takes no setting {unknown[0]!r}; it takes: {known}")
    asked = {"scale": config.scale} if "scale" in parameters else {}
    return {**asked, **config.settings}


def import_factory(place: FactoryPlace, source: str) -> Any:
    """Import what a factory is, a file as a module of its own; `UserError` for whatever goes wrong.

    `source`: what the user typed.
    """
    let_import_from(place.import_from)
    module = _import_module(place, source)
    try:
        return functools.reduce(getattr, place.attribute.split("."), module)
    except AttributeError:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        known = f"; it has {', '.join(names[:8])}" if names else ""
        raise UserError(f"{source}: no attribute {place.attribute!r} in {module.__name__}{known}") from None


def _import_module(place: FactoryPlace, source: str) -> types.ModuleType:
    try:
        if place.path is None:
            return importlib.import_module(str(place.module))
        name = f"_target_{place.path.stem}"
        file_spec = importlib.util.spec_from_file_location(name, place.path)
        if file_spec is None or file_spec.loader is None:
            raise UserError(f"{source}: {place.path} is no Python file")
        module = importlib.util.module_from_spec(file_spec)
        sys.modules[name] = module  # dataclasses and pickles of the file look it up
        file_spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and place.module is not None
        if missing and f"{place.module}.".startswith(f"{error.name}."):  # type: ignore[union-attr]
            raise UserError(
                f"{source}: no module named {error.name!r}, here or among the installed; "  # type: ignore[union-attr]
                "expected MODULE:FACTORY or FILE.py:FACTORY"
            ) from None
        raise UserError(f"{source}: importing it fails: {describe_error(error)}") from None


def call_factory(factory: Any, source: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return what a factory returns; a module that exists already is taken as it is. `UserError` for anything else."""
    attribute = source.rpartition(":")[2]
    network: Any = factory
    if not isinstance(factory, nn.Module):
        if not callable(factory):
            raise UserError(
                f"{source}: {attribute} is a {type(factory).__name__}; expected a function that returns an nn.Module"
            )
        try:
            network = factory(**arguments)
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            takes = (
                "such arguments"
                if arguments
                else "no arguments, or a config file {family: custom, factory: …, scale: …}"
            )
            raise UserError(
                f"{source}: calling {attribute}({given}) fails: {describe_error(error)}; "
                f"expected a function that takes {takes}, and returns an nn.Module"
            ) from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{source}: {attribute}() returns a {type(network).__name__}; expected an nn.Module")
    return network
