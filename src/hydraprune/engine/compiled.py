"""A network whose forward and backward passes run as code that torch.compile makes of them."""

import os
import shutil
import warnings
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hydraprune import sparsity
from hydraprune.errors import UserError
from hydraprune.modes import images_only
from hydraprune.objectives import Objective


class Compiled(nn.Module):
    """The same function of the same tensors as `network`, run by code that torch.compile makes of it.

    Masked weights are read before the compiled code and handed to it, so that masks, the caches that hold them and
    hooks on them are those of the network itself. Inside `modes.attack_mode` weights are constants, for an attack's
    pass must not pay for gradients towards them. Running statistics of BatchNorm are
    updated in place. Each mode and size of a batch is compiled when it is first met.

    Args:
        network: on its device, in its memory format; its tensors may change in place, its modules may not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # The compiler itself looks at `.grad` of what it is handed.
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
        torch.compiler.reset()  # what was compiled for the network of another stage counts against a limit
        # Not a module of this one: nothing that goes through modules or parameters is to meet it.
        self._skeleton = [sparsity.bake(network).to("meta")]
        self._modes = [(module, network.get_submodule(name)) for name, module in self._skeleton[0].named_modules()]
        self._parameter_names = [name for name, _ in self._skeleton[0].named_parameters()]
        self._buffer_names = [name for name, _ in self._skeleton[0].named_buffers()]
        self._run = torch.compile(self._plain)

    def _plain(self, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        return cast("Tensor", functional_call(self._skeleton[0], tensors, (images,)))

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to logits (batch, classes)."""
        for module, source in self._modes:
            module.training = source.training
        tensors = {name: _read(self.network, name) for name in self._parameter_names}
        if images_only():
            tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        buffers = {name: _read(self.network, name) for name in self._buffer_names}
        return self._run(tensors | buffers, images)


def _read(network: nn.Module, name: str) -> Tensor:
    """Return a tensor as readers of the module's attribute see it: a masked weight masked."""
    module, _, attribute = name.rpartition(".")
    return cast("Tensor", getattr(network.get_submodule(module), attribute))


def outputs_complaint(setting: str, objective: Objective) -> str | None:
    """Return why another way to run the network will not do for this objective, or None if it will."""
    needed = objective.more_than_outputs
    if not needed:
        return None
    return f"{setting} is for objectives that run the network; {needed}: set {setting} to false"


def check_compilable(objective: Objective, device: torch.device) -> None:
    """Raise `UserError` unless networks can be compiled for this objective, here."""
    if complaint := outputs_complaint("hardware.compile", objective):
        raise UserError(complaint)
    compilers = [os.environ.get("CXX") or "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        raise UserError("hardware.compile needs a C++ compiler on a CPU and found neither g++ nor clang++; set CXX")
