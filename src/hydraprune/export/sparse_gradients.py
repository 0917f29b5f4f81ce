"""Attacks on a pruned network without the weights that it no longer has."""

import contextlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hydraprune.errors import UserError
from hydraprune.export.graph import trace_graph
from hydraprune.modes import eval_mode, images_only
from hydraprune.runtime.graph import parse
from hydraprune.runtime.lower import Step, Weighted, lower
from hydraprune.runtime.native_library import NativeGradient, available_kernels
from hydraprune.runtime.sparse import SparseTensor
from hydraprune.sparsity import masked_weight

_PROBED = 2  # images on which the kernels are compared with the network
_LOGITS_APART, _GRADIENTS_APART = 1e-3, 5e-2
# Rounding turns a ReLU now and then whose input is nearly 0: the gradient then differs by what flows through it.


class SparseGradients(nn.Module):
    """The same function as `network`, computed by the sparse runtime's kernels where gradients go to images only.

    That is: in eval mode, on float32 images of `in_shape` on the CPU, and inside `modes.attack_mode`, under
    `torch.no_grad`, or where no parameter takes gradients. Then logits, and their gradients towards the images, come
    from the kept weights alone, in float32, whatever autocast says; second derivatives are refused. Everywhere else,
    and while the masks leave more than `most_kept` of the multiply-adds, the network itself runs.

    Parameters and masks are read anew after every change that torch counts (all but those through `.data`), running
    statistics after any.

    Args:
        network: on the CPU; a plain module, or one with masks.
        in_shape: (channels, height, width) of an image.
        most_kept: share of the multiply-adds of convolutions and linear layers, in [0, 1].
        say: takes the line that the kernels compute something else than the network, which then always runs itself;
            without it that is an error.

    Raises:
        UserError: no compiled kernels are there, or an operation of the network has none. From `forward`, when the
            kernels are first used: logits or gradients of two images of noise are not the network's.
    """

    def __init__(
        self,
        network: nn.Module,
        in_shape: tuple[int, int, int],
        most_kept: float = 1.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        kernels = available_kernels()
        if not kernels:
            raise UserError("hydraprune was installed without a C++ compiler, so its kernels are missing")
        self.network = network
        self.in_shape, self.most_kept = in_shape, most_kept
        self._kernels, self._proven, self._say = kernels[0], False, say
        self._parts = list(network.modules())
        graph = trace_graph(network, in_shape)
        self._places = _places(network)
        self._graph = parse(graph, {name: tuple(getattr(*place).shape) for name, place in self._places.items()})
        self._seen: _Seen | None = None
        self._engine: NativeGradient | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to logits (batch, classes)."""
        engine = self._current() if self._meant_for(images) else None
        if engine is None:
            return cast("Tensor", self.network(images))
        if not (torch.is_grad_enabled() and images.requires_grad):
            return torch.from_numpy(engine.logits(images.detach().contiguous().numpy()))
        return cast("Tensor", _Passes.apply(images, engine))  # type: ignore[no-untyped-call]

    def _meant_for(self, images: Tensor) -> bool:
        if images.device.type != "cpu" or images.dtype != torch.float32 or images.shape[1:] != self.in_shape:
            return False
        if any(module.training for module in self._parts):
            return False
        constant = images_only() or not torch.is_grad_enabled()
        return constant or not any(parameter.requires_grad for parameter in self.network.parameters())

    def _current(self) -> NativeGradient | None:
        """Return the kernels' network as the weights are now; None where it keeps too much."""
        if self._seen is None or not self._seen.still(self.network):
            self._seen = _Seen(self.network)
            steps = lower(self._graph, {name: _sparse(*place) for name, place in self._places.items()})
            self._engine = None
            if _share_kept(steps) <= self.most_kept:
                self._engine = NativeGradient(steps, self._kernels, torch.get_num_threads())
                self._prove(self._engine)
        return self._engine

    def _prove(self, engine: NativeGradient) -> None:
        """Compare with the network once; where they differ never use the kernels, and say so."""
        if self._proven or self._agrees(engine):
            self._proven = True
            return
        complaint = "the sparse runtime's kernels do not compute what the network does in eval mode"
        if self._say is None:
            raise UserError(complaint)
        self._say(f"{complaint}; attacks run on the network itself")
        self._engine, self.most_kept = None, -1.0

    def _agrees(self, engine: NativeGradient) -> bool:
        """Whether logits and gradients of noise differ from the network's by no more than rounding explains."""
        autograd = torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False)
        with contextlib.ExitStack() as stack:
            for context in (*autograd, eval_mode(self.network)):
                stack.enter_context(context)
            noise = torch.rand(_PROBED, *self.in_shape, generator=torch.Generator().manual_seed(0))
            images = noise.clone().requires_grad_()
            logits = self.network(images)
            towards = torch.linspace(-1.0, 1.0, logits.shape[1]).expand_as(logits)
            (gradient,) = torch.autograd.grad((logits * towards).sum(), images)
        found, tape = engine.taped(noise.numpy())
        back = engine.gradient(np.ascontiguousarray(towards.numpy()), tape)
        wanted = logits.detach().numpy()
        if not (np.isfinite(wanted).all() and torch.isfinite(gradient).all()):
            return True  # a network that is lost is for others to complain of
        same = found.shape == wanted.shape
        same = same and np.allclose(found, wanted, 0.0, _LOGITS_APART * np.abs(wanted).max(initial=0.0), True)
        apart = float(np.linalg.norm(back - gradient.numpy()))
        return same and apart <= _GRADIENTS_APART * float(gradient.norm())


class _Passes(torch.autograd.Function):
    """Logits and their gradient towards the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, engine: NativeGradient) -> Tensor:
        logits, ctx.tape = engine.taped(images.detach().contiguous().numpy())
        ctx.engine = engine
        ctx.like = images.detach()
        return torch.from_numpy(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (towards,) = gradients
        found = ctx.engine.gradient(towards.float().contiguous().numpy(), ctx.tape)
        return torch.empty_like(ctx.like).copy_(torch.from_numpy(found)), None


class _Seen:
    """The tensors of a network as they were: by version, floating buffers by what they hold.

    torch counts no version when BatchNorm moves its running statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        counted, watched = _tensors(network)
        self._counted = [(tensor, tensor._version) for tensor in counted]
        self._watched = [(tensor, tensor.clone()) for tensor in watched]

    def still(self, network: nn.Module) -> bool:
        """Whether nothing has changed."""
        counted, watched = _tensors(network)
        return (
            len(counted) == len(self._counted)
            and len(watched) == len(self._watched)
            and all(
                now is then and now._version == version
                for now, (then, version) in zip(counted, self._counted, strict=True)
            )
            and all(torch.equal(now, held) for now, (_, held) in zip(watched, self._watched, strict=True))
        )


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    counted: list[Tensor] = list(network.parameters())
    watched: list[Tensor] = []
    for buffer in network.buffers():
        (watched if buffer.is_floating_point() else counted).append(buffer)
    return counted, watched


def _places(network: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return module and attribute of each tensor that a graph may name; of a masked weight that of the product."""
    places = {}
    for path, module in network.named_modules():
        if "parametrizations" in path.split("."):
            continue
        names = [name for name, _ in module.named_parameters(recurse=False)]
        names += [name for name, _ in module.named_buffers(recurse=False)]
        names += list(getattr(module, "parametrizations", ()))
        for name in names:
            if getattr(module, name).is_floating_point():
                places[f"{path}.{name}" if path else name] = (module, name)
    return places


def _sparse(module: nn.Module, name: str) -> SparseTensor:
    """Return a tensor of a module, as readers see it, without its zeros."""
    masked = masked_weight(module) if name == "weight" else None
    if masked is None:
        dense = np.ascontiguousarray(getattr(module, name).detach().numpy(), np.float32)
        positions = np.flatnonzero(dense)
        kept = dense.reshape(-1)[positions]
        return SparseTensor(dense.shape, positions, kept) if dense.ndim > 1 else _whole(dense)
    weight, mask = masked
    positions = np.flatnonzero(mask.contiguous().numpy())
    kept = weight.numpy()[np.unravel_index(positions, tuple(mask.shape))]
    return SparseTensor(tuple(mask.shape), positions, np.ascontiguousarray(kept, np.float32))


def _whole(dense: NDArray[np.float32]) -> SparseTensor:
    return SparseTensor(dense.shape, None, dense.reshape(-1))


def _share_kept(steps: list[Step]) -> float:
    """Return which share of the multiply-adds of dense weights the kept ones need."""
    weighted = [step for step in steps if isinstance(step, Weighted)]
    pixels = [step.shape[1] * step.shape[2] for step in weighted]
    dense = sum(count * step.weight.size for count, step in zip(pixels, weighted, strict=True))
    return sum(count * step.weight.kept for count, step in zip(pixels, weighted, strict=True)) / max(dense, 1)
