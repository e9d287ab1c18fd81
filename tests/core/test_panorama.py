import re

import pytest

from harness.core.errors import UserError
from harness.core.panorama import require_panorama


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("height", [16, 63, 511, 1024, 1025])
def test_panoramas_stay_panoramas_when_cropped_and_shrunk(height: int, scale: int) -> None:
    """Twice as wide as high, cropped to a multiple of the scale as by data sets, and its low-resolution image."""
    low = (height // scale, 2 * height // scale)
    require_panorama("photo.png", (low[0] * scale, low[1] * scale), scale=scale, remedy="-")
    require_panorama("photo.png", low, remedy="-")
    require_panorama("photo.png", (height, round(2 * height * 1.008)), remedy="-")


@pytest.mark.parametrize("size", [(512, 512), (1080, 1920), (1024, 512), (1000, 2040), (1000, 1960), (500, 1040)])
def test_other_images_are_refused_by_name_and_size(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=re.escape(f"photo.png: {size[1]}×{size[0]} pixels are no whole panorama")):
        require_panorama("photo.png", size, scale=4, remedy="remove it")
