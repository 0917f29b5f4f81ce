"""Data sets as uint8 tensors or image files, safe readers with checksums, and batches that resume to the bit."""

from hydraprune.data.augmentation import AUGMENTATIONS, Augmentation, CropFlip, NoAugmentation, RandomResizedCrop
from hydraprune.data.catalogue import DATASETS, DatasetInfo
from hydraprune.data.dataset import Dataset, LabelledImages, Split
from hydraprune.data.download import Downloaded, download
from hydraprune.data.extra import read_extra
from hydraprune.data.files import FileSplit
from hydraprune.data.holdout import first, hold_out, subset
from hydraprune.data.image_folder import IMAGE_FOLDERS, read_image_folder
from hydraprune.data.load import DEFAULT_ROOT, infos, load, present, verify
from hydraprune.data.loader import Batch, Batches

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "DEFAULT_ROOT",
    "IMAGE_FOLDERS",
    "Augmentation",
    "Batch",
    "Batches",
    "CropFlip",
    "Dataset",
    "DatasetInfo",
    "Downloaded",
    "FileSplit",
    "LabelledImages",
    "NoAugmentation",
    "RandomResizedCrop",
    "Split",
    "download",
    "first",
    "hold_out",
    "infos",
    "load",
    "present",
    "read_extra",
    "read_image_folder",
    "subset",
    "verify",
]
