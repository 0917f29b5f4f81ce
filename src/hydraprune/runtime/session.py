"""Predict with a compact file: NumPy in, NumPy out, and nothing of the training stack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydraprune.errors import UserError
from hydraprune.runtime.compact_file import read_packed
from hydraprune.runtime.graph import Graph, parse
from hydraprune.runtime.lower import Step, Weighted, lower
from hydraprune.runtime.native_library import KERNELS, NativeEngine, available_kernels, library
from hydraprune.runtime.numpy_engine import NumpyEngine
from hydraprune.runtime.zoo import locate

_MOST_THREADS = 256
NUMPY = "numpy"


@dataclass(frozen=True)
class SessionInfo:
    """How a session computes.

    Attributes:
        kernels: avx512, avx2, portable, or numpy: the slow path of an installation without compiled kernels.
        slow_path: why the slow path is taken, in one line; None where it is not.
        threads: of one call.
        in_shape: (channels, height, width) of one image.
        num_classes: logits.
        weights_total, weights_kept: of convolutions and linear layers.
        layers_sparse, layers_dense: how many of them are computed which way, images one by one.
        weight_bytes: memory of the weights as the kernels read them.
        peak_activation_bytes: memory between image and logits of one call, the largest so far.
        file_bytes: size of the file.
    """

    kernels: str
    slow_path: str | None
    threads: int
    in_shape: tuple[int, int, int]
    num_classes: int
    weights_total: int
    weights_kept: int
    layers_sparse: int
    layers_dense: int
    weight_bytes: int
    peak_activation_bytes: int
    file_bytes: int


class Session:
    """A network ready to predict; may be called from several threads at once.

    Calls that overlap each have memory of their own for activations; the weights are shared.
    """

    def __init__(
        self,
        graph: Graph,
        steps: list[Step],
        threads: int,
        kernels: str | None,
        file_bytes: int,
        about: dict[str, Any],
    ) -> None:
        self.description = about
        self._graph, self._threads, self._file_bytes = graph, threads, file_bytes
        self._weighted = [step for step in steps if isinstance(step, Weighted)]
        chosen = _chosen_kernels(kernels)
        self._engine = NumpyEngine(steps) if chosen == NUMPY else NativeEngine(steps, chosen, threads)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map images (batch, channels, height, width), float32 in [0, 1], to logits (batch, classes), float32.

        An image gives the same logits to the bit in every call with the same batch size and place in the batch; other
        sizes may group images otherwise and differ in the last bits.

        Raises:
            UserError: another dtype or shape.
        """
        shape = self._graph.in_shape
        if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.shape[1:] != shape:
            came = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise UserError(f"the network takes a float32 array (batch, {', '.join(map(str, shape))}), not {came}")
        return self._engine.run(np.ascontiguousarray(images))

    def info(self) -> SessionInfo:
        """Return how the session computes, what it keeps in memory, and whether it takes the slow path."""
        weights, activations = self._engine.memory_bytes()
        slow = None
        if self._engine.kernels == NUMPY:
            built = library() is not None
            slow = (
                "asked for" if built else "hydraprune was installed without a C++ compiler; install it again with one"
            )
        return SessionInfo(
            kernels=self._engine.kernels,
            slow_path=slow,
            threads=self._threads,
            in_shape=self._graph.in_shape,
            num_classes=self._graph.num_classes,
            weights_total=sum(step.weight.size for step in self._weighted),
            weights_kept=sum(step.weight.kept for step in self._weighted),
            layers_sparse=self._engine.methods.count("sparse"),
            layers_dense=self._engine.methods.count("dense"),
            weight_bytes=weights,
            peak_activation_bytes=activations,
            file_bytes=self._file_bytes,
        )


def load(path: Path | str, threads: int = 1, kernels: str | None = None) -> Session:
    """Load a compact file that holds its graph, as `hydraprune export --to artefact` and every run write it.

    Args:
        path: the file, or `zoo:NAME` for a network that comes with the package (see `zoo`).
        threads: of one call, at least 1. Threads share the layers of single images and the images of batches.
        kernels: avx512, avx2, portable or numpy; by default the fastest that was built and that this machine has.

    Raises:
        UserError: the file is missing, damaged, altered, newer or without a graph; unknown name, kernels or threads.
        HydrapruneError: there is not enough memory for the network.
    """
    path = locate(path)
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise UserError(f"a session runs on 1 to {_MOST_THREADS} threads, not {threads!r}")
    packed = read_packed(path)
    if packed.graph is None:
        raise UserError(
            f"'{path}' does not hold its architecture as a graph: its module has an operation that the runtime "
            "lacks (docs/runtime.md lists those it has), or the file was written without one; export the network "
            "again with known operations, or load the file into PyTorch with hydraprune.export.load_compact"
        )
    try:
        graph = parse(packed.graph, {name: tensor.shape for name, tensor in packed.tensors.items()})
    except UserError as error:
        raise UserError(f"'{path}' is not a sound compact file: {error}") from None
    steps = lower(graph, packed.tensors)
    return Session(graph, steps, threads, kernels, packed.size_bytes, packed.description)


def _chosen_kernels(kernels: str | None) -> str:
    available = (*available_kernels(), NUMPY)
    if kernels is None:
        return available[0]
    if kernels not in (*KERNELS, NUMPY):
        raise UserError(f"unknown kernels '{kernels}'; known: {', '.join((*KERNELS, NUMPY))}")
    if kernels not in available:
        raise UserError(f"this machine or installation lacks the kernels '{kernels}'; it has {', '.join(available)}")
    return kernels
