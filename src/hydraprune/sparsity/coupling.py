"""Dependency groups: layers whose output channels are added up lose the same ones, or none could be taken out."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hydraprune.errors import UserError
from hydraprune.sparsity.allocations import Allocation
from hydraprune.sparsity.channels import ChannelGraph
from hydraprune.sparsity.patterns import Channels, Pattern
from hydraprune.sparsity.prunable import PRUNABLE


def traced(model: nn.Module, image: Tensor | None) -> ChannelGraph | None:
    """Return the graph of a network without masks; None without an image, and where the network cannot be traced.

    Args:
        model: stays as it is.
        image: (1, channels, height, width).
    """
    if image is None:
        return None
    try:
        return ChannelGraph(copy.deepcopy(model).cpu().eval(), image.cpu())
    except UserError:
        return None


def without_last(
    found: Mapping[str, list[nn.Module]], model: nn.Module, graph: ChannelGraph | None
) -> dict[str, list[nn.Module]]:
    """Return the weights but those whose outputs are the network's.

    Without a graph these are the last Conv or Linear of the module, whatever was included or excluded.

    Args:
        found: what `prunable_weights` returned for the network.
        model: without masks.
        graph: what `traced` returned for it.

    Raises:
        UserError: nothing is left.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, PRUNABLE)]
    last = (graph.last_layers() if graph is not None else set()) or set(layers[-1:])
    kept = {id(model.get_submodule(name)) for name in last}
    inner = {name: holders for name, holders in found.items() if not kept & {id(holder) for holder in holders}}
    if not inner:
        raise UserError(
            f"nothing to prune in {type(model).__name__}: the outputs of {', '.join(found)} are the network's, and "
            "whole outputs are removed of other layers only"
        )
    return inner


def coupled(pattern: Pattern, graph: ChannelGraph | None, names: Iterable[str]) -> Pattern:
    """Return the pattern with the dependency groups of a network, where it asks for them and they can be found.

    Args:
        pattern: that masks shall have.
        graph: of the network; without one layers are left for themselves.
        names: of the weights that get masks.
    """
    if graph is None or not isinstance(pattern, Channels) or not pattern.coupled:
        return pattern
    spaces = graph.output_spaces()
    first: dict[int, str] = {}
    groups = {}
    for name in names:
        space = spaces.get(name.rpartition(".")[0])
        groups[name] = name if space is None else first.setdefault(space, name)
    return Coupled(pattern, groups)


@dataclass(frozen=True, eq=False)
class Coupled(Pattern):
    """Whole output channels of several layers at once; the importance of one is the mean over the layers.

    Args:
        pattern: of each layer.
        groups: layer -> the first layer of its group.
    """

    whole_outputs: ClassVar[bool] = True

    pattern: Channels
    groups: Mapping[str, str]

    def masks(self, allocation: Allocation, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return masks of whole channels, the same for all layers of a group; allocations count groups' channels."""
        members: dict[str, list[Tensor]] = {}
        for name, tensor in importance.items():
            members.setdefault(self.groups[name], []).append(tensor)
        shapes = {group: [tensor.shape for tensor in found] for group, found in members.items()}
        joint = {group: torch.stack([*map(self.pattern.reduce, found)]).mean(0) for group, found in members.items()}
        chosen = allocation.of_groups(shapes).masks(joint, sparsity)
        return {
            name: torch.empty_like(tensor, dtype=torch.bool).copy_(
                self.pattern.expand(chosen[self.groups[name]], tensor.shape)
            )
            for name, tensor in importance.items()
        }

    def counted(self, mask: Tensor) -> int:
        """Return how many channels of one layer are kept."""
        return self.pattern.counted(mask)

    def group_of(self, name: str) -> str:
        """Return the first layer of the group."""
        return self.groups[name]

    def shuffled_layer(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return a mask with as many channels at random places."""
        return self.pattern.shuffled_layer(mask, generator)

    def shuffled(self, masks: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return masks with as many channels at random places, the same for all layers of a group."""
        first = self.pattern.shuffled({name: masks[name] for name in dict.fromkeys(self.groups.values())}, generator)
        kept = {name: self.pattern.reduce(mask.float()) > 0 for name, mask in first.items()}
        return {
            name: torch.empty_like(mask).copy_(self.pattern.expand(kept[self.groups[name]], mask.shape))
            for name, mask in masks.items()
        }
