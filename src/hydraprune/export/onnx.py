"""ONNX, for every runtime that reads it; a file is left only if ONNX Runtime predicts what the module predicts."""

import contextlib
import copy
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.export.tensors import plain_tensors
from hydraprune.io import atomic_path

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INPUT, _OUTPUT = "pixels", "logits"


def save_onnx(
    path: Path,
    model: nn.Module,
    in_shape: tuple[int, int, int],
    check_inputs: Tensor | None = None,
    tolerance: float = 1e-4,
) -> int:
    """Write a module in eval mode as one ONNX file of any batch size, checked, and return the size in bytes.

    The file maps `pixels` (batch, *in_shape), float32 in [0, 1], to `logits` (batch, classes). It is checked in ONNX
    Runtime at batch sizes 1 and 3 (or that of `check_inputs`): max |difference| ≤ tolerance · max |logits|.

    Args:
        path: the file to make or replace.
        model: a plain module; it stays as it is.
        in_shape: channels, height, width.
        check_inputs: pixels (batch, *in_shape) for the check; without, random ones that are the same every time.
        tolerance: greatest difference, relative to the greatest logit of the batch.

    Raises:
        UserError: the packages of `hydraprune[onnx]` are missing, or the module is still parametrized or cannot be
            exported.
        HydrapruneError: ONNX Runtime predicts something else; the file at `path` is not touched.
    """
    for package in _PACKAGES:
        _require(package)
    plain_tensors(model)
    model = copy.deepcopy(model).cpu().eval()
    if check_inputs is None:
        check_inputs = torch.rand((3, *in_shape), generator=torch.Generator().manual_seed(0))
    with atomic_path(path) as temporary:
        _export(temporary, model, in_shape)
        for pixels in (check_inputs[:1].cpu(), check_inputs.cpu()):
            _check(temporary, path, model, pixels, tolerance)
    return path.stat().st_size


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise UserError(f"ONNX export needs the package '{package}': pip install 'hydraprune[onnx]'") from None


def _export(path: Path, model: nn.Module, in_shape: tuple[int, int, int]) -> None:
    try:
        with _quiet():
            torch.onnx.export(
                model,
                (torch.zeros(2, *in_shape),),
                path,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                # torch specialises a batch of 1, so the example above has 2.
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except OSError:
        raise
    except Exception as error:  # the exporter raises whatever its many passes raise
        raise UserError(f"the module cannot be exported to ONNX: {_reason(error)}") from error


def _check(file: Path, path: Path, model: nn.Module, pixels: Tensor, tolerance: float) -> None:
    with torch.inference_mode():
        expected = model(pixels)
    found = _predict(file, pixels)
    difference = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(torch.inf)
    if not difference <= tolerance * expected.abs().max():  # so that NaN fails too
        raise HydrapruneError(
            f"'{path}' is not written: at batch size {len(pixels)} ONNX Runtime differs from the module by"
            f" {difference.item():.3g} on logits up to {expected.abs().max().item():.3g}"
        )


def _predict(file: Path, pixels: Tensor) -> Tensor:
    import onnxruntime  # noqa: PLC0415 - the packages of the extra may be absent

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run([_OUTPUT], {_INPUT: pixels.numpy()})[0])
    except Exception as error:
        raise HydrapruneError(f"ONNX Runtime cannot run the exported module: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says about itself from the user: its deprecations, graphs, packages it would like."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as sink:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(sink):
                yield
    finally:
        logging.disable(disabled)
