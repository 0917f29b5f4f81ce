"""Losses and gradients that are NaN or infinite: noticed on the device, named by their step, never saved."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from hydraprune.engine.group import Group
from hydraprune.errors import HydrapruneError

OnNan = Literal["stop", "skip"]

_IN_A_ROW = 10
"""Updates that may be skipped one after another; a network that is lost would skip all the rest."""


class Watch:
    """Looks at each update before it is made.

    With "stop" the first bad step is noted on the device, without waiting for it, and `check` raises: at the end of
    each epoch and before each saving. With "skip" the update is left out, which makes a GPU wait at every update.

    Args:
        on_nan: what to do.
        model: whose BatchNorm statistics are put back where an update is left out.
        parameters: that learn.
        device: of the losses.
        title: of the stage, for messages.
        say: shows a line for each update left out.
        group: all of which leave out an update, or end, together.
    """

    def __init__(
        self,
        on_nan: OnNan,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        title: str,
        say: Callable[[str], None],
        group: Group,
    ) -> None:
        self._group = group
        self._skips, self._parameters, self._title, self._say = on_nan == "skip", list(parameters), title, say
        self._model = model
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._first = torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64, device=device)  # step, loss, gradient
        self.skipped = self._in_a_row = 0

    def before(self) -> None:
        """Note what a forward pass changes, where updates may be left out."""
        if self._skips:
            buffers = [buffer for buffer in self._model.buffers() if buffer.dtype != torch.bool]  # not the masks
            self._kept = [(buffer, buffer.detach().clone()) for buffer in buffers]

    def passes(self, loss: Tensor, step: int) -> bool:
        """Look at a loss and the gradients; return False where the update is to be left out.

        Raises:
            HydrapruneError: many updates in a row would be left out.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        largest = largest_entry(gradients).to(self._first.device)
        found = torch.stack([loss.detach().double(), largest.double()])
        if not self._skips:
            now = torch.cat([found.new_tensor([step]), found])
            bad = ~found.isfinite().all() & (self._first[0] < 0)
            self._first = torch.where(bad, now, self._first)
            return True
        values = found.tolist()
        if not any(self._group.any(not all(map(math.isfinite, values)))):
            self._in_a_row = 0
            return True
        self._put_back()
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        self._say(f"{self._title}: {_what(*values)} at step {step}; the update is left out")
        if self._in_a_row >= _IN_A_ROW:
            raise HydrapruneError(
                f"{self._title}: {_what(*values)} at step {step}, and {_IN_A_ROW} updates in a row were left out; "
                "the network is lost, a lower learning rate may help"
            )
        return False

    @torch.no_grad()
    def _put_back(self) -> None:
        for buffer, value in self._kept:
            buffer.copy_(value)

    def check(self, per_epoch: int, together: bool = True) -> None:
        """Raise `HydrapruneError`, with the step, where something was bad; the one place that waits for the device.

        Args:
            per_epoch: steps of an epoch.
            together: whether all processes call it now; else this one looks at what it has noted itself.
        """
        own = self._first.tolist()
        noted = self._group.gather(own) if together else [own]
        step, loss, gradient = min((bad for bad in noted if bad[0] >= 0), default=noted[0])
        advice = "what is saved is from before it; a lower learning rate may help, or on_nan: skip"
        if step >= 0:
            epoch, batch = divmod(int(step), per_epoch)
            place = f"step {int(step)} (epoch {epoch}, batch {batch}, counted from 0)"
            raise HydrapruneError(f"{self._title}: {_what(loss, gradient)} at {place}; {advice}")
        with torch.no_grad():
            lost = not bool(largest_entry(self._parameters).isfinite())
            if any(self._group.any(lost)) if together else lost:
                raise HydrapruneError(f"{self._title}: the last update made parameters NaN or infinite; {advice}")

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs of it."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]


def largest_entry(tensors: Sequence[Tensor]) -> Tensor:
    """Return max |x| over all entries, NaN where one is NaN, 0 for none; it is finite where all entries are."""
    if not tensors:
        return torch.zeros(())
    return get_total_norm(tensors, norm_type=math.inf)


def _what(loss: float, gradient: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return f"the gradient is {gradient} and the loss {loss:g}"
