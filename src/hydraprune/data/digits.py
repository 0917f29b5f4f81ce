"""The 8 × 8 digits that scikit-learn carries inside its package: real data with nothing to fetch."""

import numpy as np
import torch

from hydraprune.data.dataset import Split
from hydraprune.data.holdout import hold_out

TEST_SIZE = 497


def read_digits() -> tuple[Split, Split]:
    """Return 1,300 images for training and 497 for testing, (n, 1, 8, 8).

    The file counts ink in 0..16; a pixel is round(255 · ink / 16). scikit-learn gives no split, so one is fixed here:
    stratified by digit and drawn by `hold_out` with seed 0. The file goes writer after writer, so a cut by order
    would test on other handwritings than were trained on; the customary figures for this set are of shuffled splits.
    """
    # Here and not above: importing scikit-learn takes a second or two that most runs can do without.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    digits = load_digits()
    images = torch.tensor(np.rint(digits.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    return hold_out(Split(images, labels), TEST_SIZE / len(labels))
