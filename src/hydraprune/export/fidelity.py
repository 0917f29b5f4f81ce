"""Whether a graph is its module: what the runtime computes from it beside what torch does, on fixed images."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hydraprune.errors import UserError
from hydraprune.modes import eval_mode
from hydraprune.runtime.graph import parse
from hydraprune.runtime.lower import lower
from hydraprune.runtime.numpy_engine import NumpyEngine
from hydraprune.runtime.sparse import SparseTensor

_IMAGES = 2  # more than one, so that what is done across a batch shows; ResNet-50 takes about a second at 224 × 224
_TOLERANCE = 1e-3  # of the largest logit: a hundred times what float32 costs the networks of `models`


def check_graph(graph: dict[str, Any], model: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Compare the logits of the runtime's NumPy kernels and of the module in eval mode, on two images of noise.

    Equal logits on these are no proof that the functions are equal, but few mistakes of a graph leave them alone.

    Args:
        graph: as `trace_graph` returns it.
        model: that it was traced from; a copy is run where it is not on the CPU.
        tensors: the module's, by name.

    Raises:
        UserError: the runtime would refuse the graph, or logits differ by more than 1e-3 of the largest, or the
            module fails.
    """
    packed = {
        name: SparseTensor(array.shape, None, array.reshape(-1))
        for name, array in tensors.items()
        if array.dtype == np.float32
    }
    sound = parse(graph, {name: tensor.shape for name, tensor in packed.items()})
    images = torch.rand(_IMAGES, *sound.in_shape, generator=torch.Generator().manual_seed(0))
    with np.errstate(all="ignore"):  # whatever the weights are, the module has the same
        found = NumpyEngine(lower(sound, packed)).run(images.numpy())
    wanted = _logits(model, images)
    finite = np.abs(wanted[np.isfinite(wanted)])
    limit = _TOLERANCE * finite.max(initial=0.0)
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0.0, atol=limit, equal_nan=True):
        raise UserError("the module's graph computes other logits than the module")


def _logits(model: nn.Module, images: torch.Tensor) -> NDArray[np.float32]:
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).cpu()
    try:
        with eval_mode(model), torch.inference_mode():
            logits: NDArray[np.float32] = model(images.clone()).numpy()
    except Exception as error:
        raise UserError(f"the module fails on {len(images)} images: {error}") from error
    return logits
