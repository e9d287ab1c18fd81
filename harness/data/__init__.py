"""Images to pairs of high and low resolution, cached on disk, and to random training crops."""

from harness.data.crops import CropBatch, CropSampler
from harness.data.datasets import open_dataset
from harness.data.overlap import refuse_overlap
from harness.data.pairs import ImagePair, PairedDataset
from harness.data.tensors import to_tensor

__all__ = ["CropBatch", "CropSampler", "ImagePair", "PairedDataset", "open_dataset", "refuse_overlap", "to_tensor"]
