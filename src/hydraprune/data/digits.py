"""The 8 × 8 digits that scikit-learn carries inside its package: real data with nothing to fetch."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from hydraprune.data.dataset import Split
from hydraprune.data.holdout import hold_out
from hydraprune.errors import UserError

TEST_SIZE = 497


def read_digits() -> tuple[Split, Split]:
    """Return 1,300 images for training and 497 for testing, (n, 1, 8, 8).

    The file counts ink in 0..16; a pixel is round(255 · ink / 16). scikit-learn gives no split, so one is fixed here:
    stratified by digit and drawn by `hold_out` with seed 0. The file goes writer after writer, so a cut by order
    would test on other handwritings than were trained on; the customary figures for this set are of shuffled splits.
    """
    table = np.loadtxt(_file(), delimiter=",", dtype=np.int64)
    ink, digits = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    images = torch.tensor(np.rint(ink * 255 / 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.tensor(digits)
    return hold_out(Split(images, labels), TEST_SIZE / len(labels))


def _file() -> Path:
    """Return the table inside scikit-learn, found without importing the package: that takes seconds."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("'digits' lie inside scikit-learn, which is not installed: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
