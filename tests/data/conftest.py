"""Tiny data sets: numbered images, and files in the layouts that users have on disk."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from hydraprune.data import Split

WriteImage = Callable[..., Path]


@pytest.fixture
def numbered() -> Callable[..., Split]:
    """Make n images, image i filled with the value i, with labels i mod `classes`."""

    def make(n: int, classes: int = 3, channels: int = 1, side: int = 4) -> Split:
        values = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1)
        return Split(values.expand(n, channels, side, side).clone(), torch.arange(n) % classes)

    return make


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """Three training and two test images of 2 × 3 pixels: training gzipped, test plain."""
    for part, n, pack in (("train", 3, gzip.compress), ("t10k", 2, bytes)):
        images = np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3)
        suffix = ".gz" if pack is gzip.compress else ""
        (tmp_path / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(np.arange(n, dtype=np.uint8))))
    return tmp_path


def cifar_batch(n: int, labels_key: bytes, offset: int = 0) -> dict[bytes, object]:
    """Make n rows; in each the red plane holds 1 + offset, green 2 + offset, blue 3 + offset."""
    row = np.repeat(np.array([1, 2, 3], dtype=np.uint8) + np.uint8(offset), 1024)
    return {b"data": np.tile(row, (n, 1)), labels_key: [i % 10 for i in range(n)], b"filenames": [b"x.png"] * n}


@pytest.fixture
def cifar10_folder(tmp_path: Path) -> Path:
    for number in range(1, 6):
        batch = cifar_batch(2, b"labels", offset=10 * number)
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=4))
    (tmp_path / "test_batch").write_bytes(pickle.dumps(cifar_batch(3, b"labels", offset=100), protocol=4))
    return tmp_path


@pytest.fixture
def svhn_folder(tmp_path: Path) -> Path:
    """Two files; pixel (row, column, colour) of image i holds row + 32·(colour) + i, labels 1, 2, … and 10 last."""
    for name, n in (("train_32x32.mat", 3), ("test_32x32.mat", 2)):
        row, _, colour, image = np.indices((32, 32, 3, n))
        labels = np.array([*range(1, n), 10], dtype=np.uint8).reshape(n, 1)
        savemat(tmp_path / name, {"X": (row + 32 * colour + image).astype(np.uint8), "y": labels})
    return tmp_path


@pytest.fixture
def write_image() -> WriteImage:
    """Write an RGB image whose red grows to the right and green downwards; blue is `blue` everywhere."""

    def write(path: Path, width: int = 40, height: int = 30, blue: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((height, width, 3), blue, dtype=np.uint8)
        pixels[:, :, 0] = np.linspace(0, 255, width).round()
        pixels[:, :, 1] = np.linspace(0, 255, height).round()[:, None]
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def image_folder(tmp_path: Path, write_image: WriteImage) -> Path:
    """Classes ant (4 + 2 images) and bee (5 + 1): image i of train is 40 + i wide and has blue 10·i."""
    root = tmp_path / "insects"
    names = [*(f"train/ant/{i}.png" for i in range(4)), *(f"train/bee/{i}.png" for i in range(4, 9))]
    names += ["val/ant/0.JPEG", "val/ant/1.jpg", "val/bee/0.jpeg"]
    for i, name in enumerate(names):
        write_image(root / name, width=40 + i, blue=10 * i)
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real files, beside the checkout."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not here: no folder '{folder}'")
    return folder
