"""Data sets as uint8 tensors, safe readers with checksums, and batches that resume to the bit."""

from hydraprune.data.augmentation import AUGMENTATIONS, Augmentation, CropFlip, NoAugmentation
from hydraprune.data.catalogue import DATASETS, DatasetInfo
from hydraprune.data.dataset import Dataset, Split
from hydraprune.data.holdout import first, hold_out, subset
from hydraprune.data.load import infos, load, verify
from hydraprune.data.loader import Batch, Batches

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Batch",
    "Batches",
    "CropFlip",
    "Dataset",
    "DatasetInfo",
    "NoAugmentation",
    "Split",
    "first",
    "hold_out",
    "infos",
    "load",
    "subset",
    "verify",
]
