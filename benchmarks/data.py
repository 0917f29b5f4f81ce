"""Images per second: batches made as a whole against the usual pipeline that makes one image at a time.

Both end in the same thing, a batch of 128 CIFAR-10 images cropped out of a border of 4 pixels, mirrored at random and
turned into float32 in [0, 1]; no network, and everything on the CPU.

- ours: `Batches` with `CropFlip`, from uint8 in memory.
- per sample: a torch `DataLoader` whose data set turns each image into a PIL image and hands it through pad, crop,
  flip and to-tensor, one after the other, with 0 and with 2 worker processes. These four steps are written here in
  the manner of the usual transforms, with PIL and torch alone: torchvision is no dependency of this project.

    python benchmarks/data.py --root DIR            DIR/cifar-10-batches-py holds CIFAR-10
    python benchmarks/data.py --folder DIR          JPEG files in DIR/train/CLASS and DIR/val/CLASS, 0, 1, 2 workers

Each line says the mean and the standard deviation of its passes. The first batch of a pass counts, and so do workers
that have to start, as they do in every epoch of a training.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from hydraprune import data

BATCH_SIZE = 128
PADDING = 4


class PerSample(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The usual data set: image i as a PIL image through random transforms, with its label."""

    def __init__(self, split: data.Split) -> None:
        self._images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = split.labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(random_flip(random_crop(Image.fromarray(self._images[index])))), self._labels[index]


def random_crop(image: Image.Image) -> Image.Image:
    padded = ImageOps.expand(image, border=PADDING, fill=0)
    left, top = (int(torch.randint(2 * PADDING + 1, (1,))) for _ in range(2))
    return padded.crop((left, top, left + image.width, top + image.height))


def random_flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if float(torch.rand(1)) < 0.5 else image


def to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def measure(name: str, passes: int, images: int, make: Callable[[int], Iterable[object]]) -> float:
    """Print and return the images per second of `passes` passes over `make(number)`, each of so many images."""
    speeds = []
    for number in range(passes):
        began = time.perf_counter()
        for _ in make(number):
            pass
        speeds.append(images / (time.perf_counter() - began))
    mean, spread = statistics.mean(speeds), statistics.stdev(speeds)
    print(f"{name:<24}{mean:>12,.0f} ± {spread:,.0f} images/s  (n = {passes} passes over {images:,} images)")
    return mean


def compare(root: Path, passes: int, sample: int) -> None:
    train = data.load("cifar10", root).train
    batches = data.Batches(train, BATCH_SIZE, seed=0, augmentation=data.CropFlip(padding=PADDING))
    next(iter(batches.epoch(0)))
    ours = measure("ours", 2 * passes, len(train), batches.epoch)
    few = PerSample(data.first(train, sample))
    for workers in (0, 2):
        loader = DataLoader(few, BATCH_SIZE, shuffle=True, num_workers=workers)
        theirs = measure(f"per sample, {workers} workers", passes, sample, lambda _, loader=loader: loader)
        print(f"{'':<24}{ours / theirs:>12.1f} times as fast: ours")


def decode(folder: Path, size: int, passes: int) -> None:
    """Measure random parts of JPEG files resized to `size` × `size`, as a training on ImageNet reads them."""
    train = data.read_image_folder(folder, size).train
    for workers in (0, 1, 2):
        batches = data.Batches(
            train, min(64, len(train)), seed=0, augmentation=data.RandomResizedCrop(), workers=workers
        )
        measure(f"JPEG files, {workers} workers", passes, len(train), batches.epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("data"), help="the folder that holds CIFAR-10")
    parser.add_argument("--folder", type=Path, help="measure the decoding of this image folder instead")
    parser.add_argument("--size", type=int, default=224, help="with --folder: height and width in pixels")
    parser.add_argument("--passes", type=int, default=3, help="repetitions, at least 2")
    parser.add_argument("--sample", type=int, default=10_000, help="images that the per-sample pipeline passes over")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__} on {torch.get_num_threads()} threads")
    if options.folder is None:
        compare(options.root, options.passes, options.sample)
    else:
        decode(options.folder, options.size, options.passes)


if __name__ == "__main__":
    main()
