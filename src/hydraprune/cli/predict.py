"""`predict`: classes for image files by a compact network, or for test images by a network smoothed with noise."""

import importlib
from collections.abc import Sequence

from hydraprune.cli import predict_images
from hydraprune.cli.output import say

_OF_IMAGES = {"--threads", "--json"}


def command(name: str, words: Sequence[str]) -> int:
    """Classify files where files are given, else test images."""
    if {"--help", "-h"} & set(words):
        say(predict_images.USAGE)
        return _smoothed(name, ["--help"])
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    plain = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    if plain > 1 or options <= _OF_IMAGES:
        return predict_images.command(words)
    return _smoothed(name, words)


def _smoothed(name: str, words: Sequence[str]) -> int:
    # Image files need nothing of the training stack, which takes seconds to import.
    code: int = importlib.import_module("hydraprune.cli.predict_smoothed").command(name, words)
    return code
