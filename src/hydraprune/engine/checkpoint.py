"""One state, saved whole: what a killed stage needs to end in the same bits as one never killed."""

import random
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hydraprune.data.seeds import derived_generator
from hydraprune.engine.averaging import RunningAverage
from hydraprune.engine.group import Group
from hydraprune.engine.health import Watch
from hydraprune.engine.savings import Unusable


@dataclass
class Best:
    """The best epoch on the validation split so far."""

    epoch: int = -1
    value: float = -1.0
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TrainState:
    """All that changes while a stage runs.

    The loader's position is (epoch, batch); schedules are functions of it. `totals` holds the current epoch's sums
    of losses, of right answers and of images, float64, on the model's device: reading it would make a GPU wait.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: RunningAverage
    watch: Watch
    group: Group
    epoch: int = 0
    batch: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    seconds: float = 0.0

    def dump(self) -> bytes:
        """Return everything, with the state of every random generator of every process; all of them must call it."""
        own = self.group.gather({"totals": self.totals.cpu(), "random": random_state()})
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state(),
            "watch": self.watch.state(),
            "epoch": self.epoch,
            "batch": self.batch,
            "history": self.history,
            "best": vars(self.best),
            "seconds": self.seconds,
            "processes": own,
        }
        buffer = BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def restore(self, content: bytes) -> None:
        """Restore what `dump` returned; `Unusable` when it is not such a state."""
        try:
            state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # noqa: BLE001 - torch.load raises many kinds for a broken file, with pages of advice
            raise Unusable("it is damaged") from None
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.load_state(state["average"])
            self.watch.load_state(state["watch"])
            self.epoch, self.batch = state["epoch"], state["batch"]
            self.history = state["history"]
            self.best = Best(**state["best"])
            self.seconds = state["seconds"]
            self._restore_own(state["processes"])
        except Exception as error:  # noqa: BLE001 - whatever is missing or of another shape
            raise Unusable(" ".join(str(error).split()) or type(error).__name__) from None

    def _restore_own(self, processes: list[dict[str, Any]]) -> None:
        """Restore what each process has for itself; with another number of processes, as far as that goes."""
        rank, same = self.group.rank, len(processes) == self.group.size
        totals = torch.stack([each["totals"] for each in processes])
        mine = totals[rank] if same else totals.sum(0) if rank == 0 else torch.zeros_like(totals[0])
        self.totals = mine.to(self.totals.device)
        if rank < len(processes):
            set_random_state(processes[rank]["random"])


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed every generator that training may draw from; each process draws other numbers."""
    if rank > 0:
        seed = derived_generator("process", seed, rank).initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's generators as plain values and tensors."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,  # of this process's own device
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
