"""Which channels of a network carry nothing: its graph by torch.fx, and what depends on what in it.

Tensors that are added up, normalised or pooled share their channels: such tensors form one *space*. A channel can be
taken out of a space if none of the layers that read the space sees anything of it: either the channel is 0 where that
layer reads it, or the layer's weights on it are all 0. Every other reader, known or not, is taken to see everything.
"""

import operator
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from hydraprune.errors import UserError
from hydraprune.sparsity.last_layers import last_layers
from hydraprune.sparsity.mask import has_mask

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Channel by channel, and 0 for 0.
SAME_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
)
SAME_FUNCTIONS: set[Any] = {
    *(F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, torch.tanh, F.dropout, F.max_pool2d),
    *(F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, "relu", "relu_", "tanh", "contiguous", "clone"),
}
SUMS: set[Any] = {operator.add, operator.iadd, torch.add, operator.sub, torch.sub, "add", "add_", "sub"}
FLATTENS: set[Any] = {torch.flatten, "flatten"}
RESHAPES: set[Any] = {torch.reshape, "reshape", "view"}


@dataclass(frozen=True)
class Channels:
    """Where a tensor's channels are: entry c · repeat + i of dimension 1 belongs to channel c of the space."""

    space: int
    repeat: int = 1


@dataclass(frozen=True)
class Step:
    """One node of the graph that carries channels.

    Attributes:
        node: its name in the graph.
        kind: mixing (conv, linear), depthwise, norm, same, sum, or source: something unknown.
        module: name of the layer behind it, if any.
        inputs: nodes that it reads.
    """

    node: str
    kind: str
    module: str
    inputs: tuple[str, ...]


class ChannelGraph:
    """The spaces of a network and the layers between them.

    Args:
        model: in eval mode; neither it nor its numbers are changed.
        image: (1, channels, height, width), for shapes, on the model's device.

    Raises:
        UserError: the network cannot be traced, or not be run on the image.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model = model
        self._at: dict[str, Channels] = {}
        self._sizes: list[int] = []
        self._roots: list[int] = []
        self._frozen: set[int] = set()
        self.steps: list[Step] = []
        try:
            graph = fx.Tracer().trace(model)
            with torch.no_grad():
                ShapeProp(fx.GraphModule(model, graph)).propagate(image.expand(2, *image.shape[1:]))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the channels of {type(model).__name__} cannot be traced: {reason}") from error
        self._apart = _not_alone(model, graph)
        self._last = last_layers(model, graph)
        for node in graph.nodes:
            self._visit(node)

    def _find(self, space: int) -> int:
        while self._roots[space] != space:
            space = self._roots[space]
        return space

    def _new(self, node: fx.Node) -> Channels:
        self._sizes.append(node.meta["tensor_meta"].shape[1] if len(node.meta["tensor_meta"].shape) > 1 else 1)
        self._roots.append(len(self._roots))
        return Channels(len(self._roots) - 1)

    def _visit(self, node: fx.Node) -> None:
        sources = [one for one in node.all_input_nodes if one.name in self._at]
        if node.op == "get_attr" or _asks_for_batch(node):
            return
        if not _is_tensor(node):  # the network's output, or a shape that somebody wants to know
            self._freeze(sources)
            return
        kind, module = self._kind(node, sources)
        if kind == "source":
            self._freeze(sources)
            self._at[node.name] = self._new(node)
            self._frozen.add(self._at[node.name].space)
        elif kind == "mixing":
            self._at[node.name] = self._new(node)
        else:
            first = self._at[sources[0].name]
            if kind == "sum":
                self._roots[self._find(self._at[sources[1].name].space)] = self._find(first.space)
            repeat = first.repeat * (prod(_shape(sources[0])[2:]) if kind == "flatten" else 1)
            self._at[node.name] = Channels(first.space, repeat)
        known = kind if kind != "flatten" else "same"
        self.steps.append(Step(node.name, known, module, tuple(one.name for one in sources)))

    def _freeze(self, nodes: list[fx.Node]) -> None:
        self._frozen |= {self._at[node.name].space for node in nodes}

    def _kind(self, node: fx.Node, sources: list[fx.Node]) -> tuple[str, str]:
        """Return what a node does to channels; `source` for what is not known: it reads all and gives all."""
        alike = len(sources) == 1 and _shape(node)[:2] == _shape(sources[0])[:2]
        flat = len(sources) == 1 and _shape(node) == (2, prod(_shape(sources[0])[1:]))
        if node.op == "call_module":
            return self._kind_of_module(str(node.target), sources, alike, flat)
        if node.op not in ("call_function", "call_method"):
            return "source", ""
        if node.target in SUMS and len(sources) == 2 and _shape(node) == _shape(sources[0]) == _shape(sources[1]):
            one, other = (self._at[source.name] for source in sources)
            return ("sum" if one.repeat == other.repeat and not node.kwargs else "source"), ""
        if (node.target in SAME_FUNCTIONS or _is_mean_over_places(node)) and alike:
            return "same", ""
        if flat and (
            node.target in FLATTENS or (node.target in RESHAPES and len(node.args) == 3 and node.args[2] == -1)
        ):
            return "flatten", ""
        return "source", ""

    def _kind_of_module(self, name: str, sources: list[fx.Node], alike: bool, flat: bool) -> tuple[str, str]:
        module = self.model.get_submodule(name)
        if len(sources) != 1 or name in self._apart:
            return "source", ""
        repeat, flat_in = self._at[sources[0].name].repeat, len(_shape(sources[0])) == 2
        if isinstance(module, CONVS) and _is(module, CONVS) and repeat == 1:
            depthwise = module.groups == module.in_channels == module.out_channels
            kind = "mixing" if module.groups == 1 else "depthwise" if depthwise else "source"
        elif _is(module, (nn.Linear,)) and flat_in:
            kind = "mixing"
        elif _is(module, (_BatchNorm,)) and alike:
            kind = "norm"
        elif _is(module, SAME_MODULES) and alike:
            kind = "same"
        else:
            kind = "flatten" if _is(module, (nn.Flatten,)) and flat else "source"
        return kind, name if kind in ("mixing", "depthwise", "norm") else ""

    def layer(self, step: Step) -> Any:
        """Return the module of a step."""
        return self.model.get_submodule(step.module)

    def spread(self, step: Step, kept: dict[int, Tensor], *, inputs: bool) -> Tensor:
        """Return which entries of dimension 1 of a step's input, or output, are kept."""
        at = self._at[step.inputs[0] if inputs else step.node]
        return kept[self._find(at.space)].repeat_interleave(at.repeat)

    def output_spaces(self) -> dict[str, int]:
        """Return the space of the output channels of each layer, by the layer's name."""
        return {step.module: self._find(self._at[step.node].space) for step in self.steps if step.module}

    def last_layers(self) -> set[str]:
        """Return the layers whose output channels are the network's: the last ones, and all in the spaces of these.

        What stands between a layer and the network's output, known or not, is taken to pass all channels on.
        """
        spaces = self.output_spaces()
        last = {spaces[name] for name in self._last if name in spaces}
        return self._last | {name for name, space in spaces.items() if space in last}

    def silent(self, kept: dict[int, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return which channels of each node would be 0 without what biases and norms add to nothing.

        Returns:
            By node, booleans over the channels of its space; and by parameter's name, booleans over those of its
            entries that are all that is left of a channel.
        """
        found: dict[str, Tensor] = {}
        left: dict[str, Tensor] = {}
        frozen = {self._find(space) for space in self._frozen}
        for step in self.steps:
            found[step.node] = self._zero(step, found, kept)
            if step.module and self._find(self._at[step.node].space) not in frozen:
                nothing = found[step.node].repeat_interleave(self._at[step.node].repeat)
                names = ("weight", "bias") if step.kind == "norm" else ("bias",)
                left |= {
                    f"{step.module}.{name}": nothing for name in names if getattr(self.layer(step), name) is not None
                }
        return found, left

    def everything(self) -> dict[int, Tensor]:
        """Return all channels of all spaces."""
        return {
            space: torch.ones(self._sizes[space], dtype=torch.bool) for space in set(map(self._find, self._roots))
        }

    def kept(self) -> dict[int, Tensor]:
        """Return by space which channels have to stay: the least that leaves every output as it is."""
        kept = self.everything()
        frozen = {self._find(space) for space in self._frozen}
        while True:
            zero: dict[str, Tensor] = {}
            for step in self.steps:
                zero[step.node] = self._zero(step, zero, kept) & ~self._constant(step)
            needed = {space: torch.full_like(mask, space in frozen) for space, mask in kept.items()}
            for step in self.steps:
                if step.kind == "mixing":
                    at = self._at[step.inputs[0]]
                    rows = self.spread(step, kept, inputs=False)
                    read = _any(self.layer(step).weight[rows].transpose(0, 1)).view(-1, at.repeat).any(1)
                    needed[self._find(at.space)] |= read & ~zero[step.inputs[0]]
            after = {space: _at_least_one(mask & needed[space]) for space, mask in kept.items()}
            if all(torch.equal(after[space], kept[space]) for space in kept):
                return kept
            kept = after

    def _zero(self, step: Step, before: dict[str, Tensor], kept: dict[int, Tensor]) -> Tensor:
        """Return which channels are 0 but for what a bias or norm adds."""
        if step.kind == "source":
            return torch.zeros(self._sizes[self._at[step.node].space], dtype=torch.bool)
        zero = before[step.inputs[0]]
        if step.kind == "mixing":
            at = self._at[step.inputs[0]]
            seen = (~zero & kept[self._find(at.space)]).repeat_interleave(at.repeat)
            return ~_any(self.layer(step).weight[:, seen])
        if step.kind == "depthwise":
            return zero | ~_any(self.layer(step).weight)
        if step.kind == "norm" and self.layer(step).weight is not None:
            return zero | self._by_channel(step, self.layer(step).weight.detach().cpu() == 0)
        return zero & before[step.inputs[1]] if step.kind == "sum" else zero

    def _constant(self, step: Step) -> Tensor:
        """Return which channels get something added that does not depend on what comes in."""
        layer = self.layer(step) if step.module else None
        nothing = torch.zeros(self._sizes[self._at[step.node].space], dtype=torch.bool)
        if layer is None:
            return nothing
        if not isinstance(layer, _BatchNorm):
            return nothing if layer.bias is None else layer.bias.detach().cpu() != 0
        added = torch.zeros(layer.num_features)
        if layer.running_mean is not None:
            added = layer.running_mean.cpu() * (1.0 if layer.weight is None else layer.weight.detach().cpu())
        present = added != 0
        if layer.bias is not None:
            present = present | (layer.bias.detach().cpu() != 0)
        return ~self._by_channel(step, ~present)

    def _by_channel(self, step: Step, entries: Tensor) -> Tensor:
        """Return for which channels it holds of all their entries."""
        return entries.view(-1, self._at[step.node].repeat).all(1)


def _any(weight: Tensor) -> Tensor:
    """Return for which entries of the first dimension anything is not 0."""
    return (weight.detach() != 0).reshape(len(weight), -1).any(1).cpu()


def _at_least_one(kept: Tensor) -> Tensor:
    """No tensor can be empty: where nothing is needed the first channel stays."""
    if not kept.any():
        kept[0] = True
    return kept


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _is_tensor(node: fx.Node) -> bool:
    return node.op != "output" and hasattr(node.meta.get("tensor_meta"), "shape")


def _asks_for_batch(node: fx.Node) -> bool:
    """Whether a node is `x.size(0)` or `x.shape[0]`, which stay what they are whatever the channels."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    asks = node.op == "call_function" and node.target is getattr and node.args[1:] == ("shape",)
    return asks and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def _is_mean_over_places(node: fx.Node) -> bool:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = given if isinstance(given, (list, tuple)) else (given,)
    if node.target not in (torch.mean, "mean") or not isinstance(node.args[0], fx.Node):
        return False
    size = len(_shape(node.args[0]))
    return all(isinstance(dim, int) and dim % size > 1 for dim in dims)


def _is(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module computes what one of the kinds does: a subclass with a `forward` of its own does not."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _not_alone(model: nn.Module, graph: fx.Graph) -> set[str]:
    """Return layers that cannot be cut: called twice, tied, hooked, parametrized, or whose weights others fetch."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    fetched = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    holders = Counter(id(parameter) for module in modules for parameter in module.parameters(recurse=False))

    def alone(name: str) -> bool:
        module = model.get_submodule(name)
        plain = has_mask(module) or not parametrize.is_parametrized(module)
        hooked = module._forward_hooks or module._forward_pre_hooks
        tied = any(holders[id(parameter)] > 1 for parameter in module.parameters())
        return plain and not hooked and not tied and calls[name] == 1 and name not in fetched

    return {name for name in calls if not alone(name)}
