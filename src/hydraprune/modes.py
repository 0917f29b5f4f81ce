"""Modes that last as long as a context."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import nn

_IMAGES_ONLY: ContextVar[bool] = ContextVar("images_only", default=False)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and each back into the mode it had."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def attack_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode and promise that inside, gradients are asked for of images only.

    A network may then leave out what gradients towards its weights need.
    """
    token = _IMAGES_ONLY.set(True)
    try:
        with eval_mode(model):
            yield
    finally:
        _IMAGES_ONLY.reset(token)


def images_only() -> bool:
    """Whether `attack_mode` holds here."""
    return _IMAGES_ONLY.get()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Let no GPU round the factors of float32 products to 10 bits (TF32), as torch lets convolutions do."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
