"""From images as bytes to what networks take."""

import numpy as np
import torch
from torch import Tensor

from harness.data.imresize import ImageArray


def to_tensor(images: ImageArray) -> Tensor:
    """Return uint8 RGB images, B×H×W×3 or one H×W×3, as float32 B×3×H×W in [0, 1]; never a view of the input."""
    images_BHWC = images if images.ndim == 4 else images[None]
    bytes_BCHW = torch.from_numpy(np.array(images_BHWC)).permute(0, 3, 1, 2)
    return bytes_BCHW.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
