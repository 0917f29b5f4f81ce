"""What a stage says of itself while it runs: JSON lines, and TensorBoard as a second view of them."""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hydraprune.errors import UserError
from hydraprune.io import write_text
from hydraprune.paths import StagePaths

_SHOWN = ("loss", "lr", "train_accuracy", "validation_benign", "validation_robust")


@dataclass(frozen=True)
class Logging:
    """What is written down while a stage trains, besides a line for each epoch.

    Args:
        every_steps: steps between two lines; none writes a line for each epoch only.
        tensorboard: the same for TensorBoard; needs the package tensorboard.
    """

    every_steps: int | None = 100
    tensorboard: bool = False


class StageLog:
    """The log of one stage: one record for each of some steps and for each epoch, none twice.

    A loss is read from the device when the next is noted, and so when it has long been computed: nobody waits.

    Args:
        paths: of the stage.
        logging: what to write.
        steps: of the whole stage.
    """

    def __init__(self, paths: StagePaths, logging: Logging, steps: int) -> None:
        self._paths, self._logging, self._steps = paths, logging, steps
        self._pending: tuple[dict[str, Any], Tensor] | None = None
        self._board = _board(paths) if logging.tensorboard else None

    def resume(self, epochs: int, steps: int) -> None:
        """Leave out what was written of steps and epochs that will come again, and half a line."""
        kept = [
            record
            for record in read_log(self._paths)
            if (record["epoch"] < epochs if record["event"] == "epoch" else record["step"] <= steps)
        ]
        text = "".join(map(_line, kept))
        if self._paths.log.exists() and self._paths.log.read_text(encoding="utf-8", errors="replace") != text:
            write_text(self._paths.log, text)
        for record in kept:
            self._draw(record)

    def step(self, step: int, epoch: int, lr: float, seconds: float, loss: Tensor) -> None:
        """Note an update after `step` steps, if it is time.

        Args:
            step: steps done in the stage.
            epoch: from 0.
            lr: learning rate of the update.
            seconds: spent in the stage.
            loss: scalar, on the device.
        """
        every = self._logging.every_steps
        if every is not None and step % every == 0:
            self.flush()
            record = {"event": "step", "step": step, "steps": self._steps, "epoch": epoch, "lr": lr}
            self._pending = ({**record, "seconds": seconds}, loss.detach().clone())

    def epoch(self, record: dict[str, Any]) -> None:
        """Write an epoch's record."""
        self.flush()
        self._write({"event": "epoch", **record, "steps": self._steps})

    def flush(self) -> None:
        """Write what is noted and not written yet."""
        if self._pending is not None:
            record, loss = self._pending
            self._pending = None
            self._write({**record, "loss": float(loss)})

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        if self._board is not None:
            self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with self._paths.log.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise UserError(f"cannot write '{self._paths.log}': {error.strerror or error}") from None
        self._draw(record)

    def _draw(self, record: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name in _SHOWN:
            if record.get(name) is not None:
                self._board.add_scalar(f"{record['event']}/{name}", record[name], record["step"])


def read_log(paths: StagePaths) -> list[dict[str, Any]]:
    """Return the whole records of a stage's log; none where there is no log."""
    return list(_records(paths))


def _records(paths: StagePaths) -> Iterator[dict[str, Any]]:
    if not paths.log.exists():
        return
    for line in paths.log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and {"event", "epoch", "step", "steps"} <= record.keys():
                yield record


def _line(record: dict[str, Any]) -> str:
    """Return the record as a line of JSON, which knows no NaN and no infinity: null stands for them."""
    known = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(known, allow_nan=False) + "\n"


def _board(paths: StagePaths) -> Any:
    """Return a writer for TensorBoard on an empty folder: what belongs there is drawn again from the log."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional package
    except ImportError:
        raise UserError(
            "log.tensorboard needs the package tensorboard: pip install 'hydraprune[tensorboard]', or say false"
        ) from None
    shutil.rmtree(paths.tensorboard, ignore_errors=True)
    return SummaryWriter(str(paths.tensorboard))
