"""What counts as a whole panorama: the sphere, 360° wide and 180° high, in equirectangular projection."""

from harness.core.errors import UserError


def require_panorama(what: str, size: tuple[int, int], *, scale: int = 1, remedy: str) -> None:
    """Raise `UserError` naming `what` unless an image of `size` = (height, width) pixels is twice as wide as high.

    1 % of the width is forgiven, and 2·scale pixels: what an image loses where it is cropped to multiples of `scale`.
    """
    height, width = size
    if abs(width - 2 * height) > 0.01 * width + 2 * scale:
        raise UserError(
            f"{what}: {width}×{height} pixels are no whole panorama; expected an equirectangular image, 2:1; {remedy}"
        )
