"""The licence of a bundle's weights, as far as anybody has said: nothing is guessed."""

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from harness.core.errors import UserError
from harness.data.catalogue import known_terms
from harness.export.documents import IMPORTED, BundleConfig, BundleMetrics

UNSTATED = "unstated"
_SOFTWARE = (
    "The licence of the software harness, Apache-2.0, is that of the software: it says nothing of weights that were "
    "trained with it."
)


def parse_licence(text: str) -> str:
    """Return an SPDX expression (`CC-BY-4.0`, `LicenseRef-Ours`) as SPDX spells it, or `unstated`; else `UserError`."""
    if text == UNSTATED:
        return text
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression as error:
        raise UserError(
            f"--licence {text}: {error}; expected an SPDX expression such as CC-BY-4.0, LicenseRef-NAME for one of "
            f"your own, or {UNSTATED}"
        ) from None


def describe_licence(config: BundleConfig, metrics: BundleMetrics) -> str:
    """Return what is known of the licence of the weights and of the images that they were trained on, as paragraphs."""
    if config.licence in (None, UNSTATED):
        weights = (
            f"The licence of the weights is {UNSTATED}: nobody has said under which they may be used or passed on. "
            "Ask whoever trained them, or state it by `harness export --licence`."
        )
    else:
        weights = f"The weights, and the ONNX files made of them: {config.licence}, as stated when they were exported."
    return "\n\n".join([f"{weights} {_SOFTWARE}", _describe_images(config, metrics)])


def _describe_images(config: BundleConfig, metrics: BundleMetrics) -> str:
    if metrics.data is not None and metrics.training_result is not None:
        source = metrics.data.train
        terms = known_terms(source)
        known = "nothing is known here of the terms that they come under" if terms is None else terms
        return f"Training images, `{source}`: {known}."
    if config.picked_as == IMPORTED:
        return f"Nothing is known here of the images that `{config.study}` was trained on."
    return "It was trained on no images here."
