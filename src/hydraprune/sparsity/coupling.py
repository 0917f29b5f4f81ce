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


def coupled(pattern: Pattern, model: nn.Module, image: Tensor | None, names: Iterable[str]) -> Pattern:
    """Return the pattern with the dependency groups of a network, where it asks for them and they can be found.

    Args:
        pattern: that masks shall have.
        model: without masks; it stays as it is.
        image: (1, channels, height, width); None, and a network that cannot be traced, leave layers for themselves.
        names: of the weights that get masks.
    """
    if image is None or not isinstance(pattern, Channels) or not pattern.coupled:
        return pattern
    try:
        spaces = ChannelGraph(copy.deepcopy(model).cpu().eval(), image.cpu()).output_spaces()
    except UserError:
        return pattern
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
            members.setdefault(self.groups[name], []).append(self.pattern.reduce(tensor))
        joint = {group: torch.stack(found).mean(0) for group, found in members.items()}
        chosen = allocation.masks(joint, sparsity)
        return {
            name: torch.empty_like(tensor, dtype=torch.bool).copy_(
                self.pattern.expand(chosen[self.groups[name]], tensor.shape)
            )
            for name, tensor in importance.items()
        }

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
