"""The score of the NTIRE challenges on efficient super-resolution."""

import math

from harness.core.errors import UserError


def ntire_score(
    *,
    runtime: float,
    reference_runtime: float,
    flops: float,
    reference_flops: float,
    params: float,
    reference_params: float,
) -> float:
    """Return 0.7·exp(2t/t₀) + 0.15·exp(2F/F₀) + 0.15·exp(2P/P₀): lower is better, the reference has e² ≈ 7.389.

    t runtime, F FLOPs and P parameters, each in the unit of its reference (₀); MACs do as well as FLOPs. Source: the
    main track of The Ninth NTIRE 2024 Efficient Super-Resolution Challenge (Ren et al., CVPR Workshops 2024,
    arXiv:2404.10343), whose reference is RLFN on one GPU: scores against another reference, or on another machine,
    stand beside each other and not beside the challenge's. Raises `UserError` for references that are not above 0 and
    for values below 0. Infinite where a ratio is beyond what a float can hold.
    """
    score = 0.0
    for name, weight, value, reference in (
        ("runtime", 0.7, runtime, reference_runtime),
        ("flops", 0.15, flops, reference_flops),
        ("params", 0.15, params, reference_params),
    ):
        if not (reference > 0 and value >= 0):
            raise UserError(f"NTIRE score: {name} {value:g} against {reference:g}; expected ≥ 0 against > 0")
        ratio = 2 * value / reference
        score += weight * (math.exp(ratio) if ratio < 700 else math.inf)  # exp(710) is beyond float64
    return score
