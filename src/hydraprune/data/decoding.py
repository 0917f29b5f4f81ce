"""Image files to uint8 tensors, in this process or in worker processes that decode ahead."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hydraprune.data.views import Box, View
from hydraprune.errors import DataError, HydrapruneError

T = TypeVar("T")

_FORMATS = ("JPEG", "PNG")
_SPARE = 2
"""How many times larger than the result a part must still be after a JPEG decoder has shrunk the image."""


@dataclass(frozen=True)
class Job:
    """A batch to be decoded.

    Args:
        paths: of the files.
        views: what each shows.
    """

    paths: tuple[Path, ...]
    views: tuple[View, ...]


def decode(path: Path, view: View, size: int) -> NDArray[np.uint8]:
    """Return the part of an image that `view` shows, (size, size, 3) RGB, resized bilinearly with antialiasing.

    Grey, palette and CMYK images become RGB, 16 bits a pixel become 8, an alpha channel is dropped. A camera's note
    on how it was held (EXIF) is ignored, as in the usual pipelines of ImageNet.

    Raises:
        DataError: no JPEG or PNG, damaged, truncated or not readable; the file is named.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            box = view(*image.size)
            shrunk = 1 if view.exact else _shrink(image, box, size)
            resized = _rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box.corners(shrunk))
    except FileNotFoundError:
        raise DataError(f"cannot decode '{path}': the file is gone") from None
    # Pillow raises whatever the broken bytes led it to: OSError, SyntaxError, zlib.error, struct.error, IndexError …
    except Exception as error:  # noqa: BLE001
        raise DataError(f"cannot decode '{path}': {_reason(error)}; replace or remove the file") from None
    pixels = np.asarray(resized)
    return pixels[:, ::-1] if box.mirrored else pixels


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no JPEG or PNG image"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _shrink(image: Image.Image, box: Box, size: int) -> float:
    """Let the decoder leave detail out (JPEG: by 2, 4 or 8) that the resize would average away; return the factor."""
    width, height = image.size
    enough = (int(_SPARE * size * width / box.width) + 1, int(_SPARE * size * height / box.height) + 1)
    drafted = image.draft(None, enough)
    return 1 if drafted is None else width / drafted[1][2]


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the straight way makes Pillow warn
    return image.convert("RGB")


def decoded(jobs: Iterable[Job], size: int, workers: int = 0, pin: bool = False) -> Iterator[Tensor]:
    """Yield (n, 3, size, size) uint8 for each job, in order, whatever the number of `workers`.

    Args:
        jobs: read ahead by two for each worker.
        size: of the views, in pixels.
        workers: processes that decode; 0 decodes in this one. They end with the iterator, and with this process.
        pin: lay the results into page-locked memory, from where they reach a GPU while it computes.

    Raises:
        DataError: a file cannot be decoded; it is named, also where a worker met it.
        HydrapruneError: a worker died.
    """
    batches = _Batches(size)
    if workers == 0:
        results = map(batches.__getitem__, jobs)
        for result in results:
            yield _sound(result).pin_memory() if pin else _sound(result)
        return
    # With no generator the loader would draw a seed from the global one: a run gone on with would see other numbers.
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=_Jobs(jobs),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        multiprocessing_context=_context(),
        generator=torch.Generator(),
    )
    ahead = iter(loader)
    try:
        for result in ahead:
            yield _sound(result)
    # The loader's watch raises RuntimeError; a worker that dies while it hands over a batch, what its socket says.
    except (RuntimeError, EOFError, OSError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HydrapruneError(
            f"a process that decodes images died ({reason}); if memory ran out, fewer workers, "
            "a smaller batch or a larger /dev/shm help; 0 workers need none of it"
        ) from None
    finally:
        del ahead  # an error's traceback would keep it, and with it the workers


class _Batches(TorchDataset[Tensor | str]):
    """Decodes a job as a whole. A complaint is a result: raised in a worker, its text would drown in a traceback."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __getitem__(self, job: Job) -> Tensor | str:
        pixels = np.empty((len(job.paths), self._size, self._size, 3), np.uint8)
        try:
            for row, path, view in zip(pixels, job.paths, job.views, strict=True):
                row[:] = decode(path, view, self._size)
        except DataError as error:
            return str(error)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class _Jobs:
    """The jobs in the place where a loader expects a sampler."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = jobs

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)


def _sound(result: Tensor | str) -> Tensor:
    if isinstance(result, str):
        raise DataError(result)
    return result


def _as_it_is(result: T) -> T:
    return result


def _context() -> multiprocessing.context.ForkServerContext:
    """Return how workers start: forked from a process without threads that has imported this module already.

    A fork of this process would copy the locks of its threads (OpenMP, CUDA, progress bars) as they happen to stand;
    a fresh process for each worker would import torch anew in every epoch.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(number: int) -> None:  # noqa: ARG001 - the loader passes it
    """Leave signals to the main process, which finishes its step and saves; end when it ends, however it does."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # The loader's own watch looks at the process that forked this one, which is not the one that reads the batches.
    parent = multiprocessing.parent_process()
    if parent is not None:
        with suppress(OSError):
            parent.join()
        os._exit(1)
