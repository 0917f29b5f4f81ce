"""`predict NETWORK IMAGE …`: image files by a compact network, on the sparse runtime, without the training stack."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hydraprune import runtime
from hydraprune.cli.output import percent, say
from hydraprune.errors import DataError, UserError

USAGE = """usage: hydraprune predict NETWORK IMAGE … [--threads N] [--json]
       hydraprune predict TARGET --sigma SIGMA [--OPTION VALUE …]

The first form classifies PNG or JPEG files with a compact network. Images of another size are scaled, those of other
colours converted. --threads N: threads to use, by default 1. --json: one JSON object on stdout.
The second classifies test images with the network smoothed by Gaussian noise. Its options:"""


@dataclass(frozen=True)
class _Words:
    files: tuple[str, ...]
    threads: int = 1
    json: bool = False


def command(words: Sequence[str]) -> int:
    """Print the class of each image and the softmax of its logit."""
    options = _parse(words)
    network, *images = options.files or ("",)
    if not images:
        raise UserError("say which images: predict NETWORK IMAGE …; or give --sigma for the smoothed network")
    session = runtime.load(network, options.threads)
    in_shape = session.info().in_shape
    logits = session(np.stack([_pixels(Path(image), in_shape) for image in images]))
    if not np.isfinite(logits).all():
        raise UserError(f"the logits of '{network}' are not finite numbers: its weights are damaged")
    names = _class_names(session)
    rows = [_row(image, values, names) for image, values in zip(images, logits, strict=True)]
    if options.json:
        say(json.dumps({"network": network, "kernels": session.info().kernels, "predictions": rows}))
        return 0
    for row in rows:
        say(f"{row['file']}  {row['class']}  {percent(row['softmax'])}")
    return 0


def _parse(words: Sequence[str]) -> _Words:
    files, threads, as_json = [], 1, False
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option == "--json" and not equals:
            as_json = True
        elif option == "--threads":
            value = value if equals else next(rest, "")
            if not value.isdecimal():
                raise UserError(f"--threads takes a number, not '{value}'")
            threads = int(value)
        elif word.startswith("--"):
            raise UserError(f"predict does not know the option '{word}'; it knows --threads N and --json")
        else:
            files.append(word)
    return _Words(tuple(files), threads, as_json)


def _pixels(path: Path, in_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the image as (channels, height, width) in [0, 1]."""
    channels, height, width = in_shape
    if channels not in {1, 3}:
        raise UserError(f"the network takes images of {channels} channels; image files have 1 or 3")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(image, np.float32) / np.float32(255)
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' is not a readable PNG or JPEG image: {' '.join(str(error).split())}") from None
    return array.reshape(height, width, channels).transpose(2, 0, 1)


def _class_names(session: runtime.Session) -> list[str]:
    named = session.description.get("class_names", session.description.get("classes"))
    count = session.info().num_classes
    if isinstance(named, list) and len(named) == count:
        # A name is whatever the file says: no control characters of it reach the terminal.
        return ["".join(c if c.isprintable() else "?" for c in str(name)) for name in named]
    return [str(number) for number in range(count)]


def _row(image: str, logits: NDArray[np.float32], names: list[str]) -> dict[str, Any]:
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    best = int(logits.argmax())
    return {
        "file": image,
        "class": names[best],
        "index": best,
        "softmax": float(exponents[best] / exponents.sum()),
        "logits": [float(value) for value in logits],
    }
