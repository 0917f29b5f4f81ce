"""What a network says of noisy copies of images, counted: full batches, whichever images their rows come from."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hydraprune.data import Batches, LabelledImages
from hydraprune.errors import UserError
from hydraprune.evaluation.smoothing.noise import CHUNK, LEVELS, GridNoise, noisy
from hydraprune.modes import eval_mode

Phase = Literal["selection", "estimation"]
Classifier = Callable[[Tensor], Tensor]
Counts = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Compute:
    """How a network is run; none of it changes a certificate beyond the rounding of logits.

    Args:
        batch_size: noisy images at once; none takes 64 on a CPU, whose caches they fit, and 1,000 on a GPU.
        device: where the network is and the noise is made.
        channels_last: lay batches (and a network's weights) out in NHWC.
        bf16: run the network under bfloat16 autocast: another network, and the certificate is that network's.

    Raises:
        UserError: a batch size below 1.
    """

    batch_size: int | None = None
    device: torch.device = torch.device("cpu")
    channels_last: bool = True
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UserError(f"the batch size must be at least 1, got {self.batch_size}")

    @property
    def rows(self) -> int:
        """The batch size in use."""
        if self.batch_size is None:
            return 64 if self.device.type == "cpu" else 1000
        return self.batch_size

    def precision(self) -> AbstractContextManager[object]:
        """Return the context to run the network in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()


@dataclass(eq=False)
class Votes:
    """One image under way.

    Attributes:
        index: in its split; the noise belongs to it.
        label: its class.
        pixels: (channels, height, width) int16, in 0 … 255.
        goals: samples wanted so far, by phase.
        sent: samples made so far.
        counts: (classes,) how often each class was the answer, by phase.
        seconds: the image's share of the time that its batches took.
        done: nothing more is wanted.
    """

    index: int
    label: int
    pixels: Tensor
    goals: dict[Phase, int]
    sent: dict[Phase, int] = field(default_factory=dict)
    counts: dict[Phase, Counts] = field(default_factory=dict)
    hits: list[int] = field(default_factory=list)
    seconds: float = 0.0
    done: bool = False

    @property
    def answered(self) -> bool:
        """Whether every sample that is wanted so far has been counted."""
        return all(self.total(phase) == goal for phase, goal in self.goals.items())

    @property
    def samples(self) -> int:
        """How many samples were counted."""
        return sum(self.total(phase) for phase in self.goals)

    def total(self, phase: Phase) -> int:
        """Return how many samples of a phase were counted."""
        return int(self.counts[phase].sum()) if phase in self.counts else 0

    def top(self, phase: Phase) -> int:
        """Return the class with the most votes, the lower number of equal ones."""
        return int(self.counts[phase].argmax())


@dataclass(frozen=True)
class _Rows:
    """Noisy copies of one image that wait for their batch."""

    votes: Votes
    phase: Phase
    inputs: Tensor


def sample(
    model: Classifier,
    images: Iterator[Votes],
    noise: GridNoise,
    seed: int,
    compute: Compute,
    advance: Callable[[Votes], bool],
    check: Callable[[], None],
) -> Iterator[Votes]:
    """Run noisy copies through the network; yield each image when it is done, in the order of `images`.

    The noise of an image is a function of (seed, its index, phase, which chunk of `CHUNK`): no batch size, order or
    interruption changes it, and no two uses share any.

    Args:
        model: logits (batch, classes) from pixels (batch, channels, height, width), float32.
        images: where they come from, taken when a batch has room for them.
        noise: made on the device of `compute`.
        seed: of the noise.
        compute: how to run the network.
        advance: called when all samples that an image wanted were counted: raises its goals and returns True, or
            returns False when it is done.
        check: called before each batch; may raise to stop.

    Raises:
        UserError: the network returns NaN or infinite logits.
    """
    window: deque[Votes] = deque()
    waiting: deque[_Rows] = deque()
    while True:
        check()
        began = time.perf_counter()
        _fill(waiting, window, images, noise, seed, compute.rows)
        if not waiting:
            return
        batch = _take(waiting, compute.rows)
        answers = _classify(model, batch, compute)
        share = (time.perf_counter() - began) / len(answers)
        for rows in batch:
            mine, answers = answers[: len(rows.inputs)], answers[len(rows.inputs) :]
            _count(rows, mine)
            rows.votes.seconds += share * len(mine)
        for votes in window:
            if votes.answered and not votes.done:  # one that is done waits for its elders
                votes.done = not advance(votes)
        while window and window[0].done:
            yield window.popleft()


def _fill(
    waiting: deque[_Rows],
    window: deque[Votes],
    images: Iterator[Votes],
    noise: GridNoise,
    seed: int,
    batch_size: int,
) -> None:
    """Make noisy copies, of the oldest images first, until a batch is full or nothing is left to ask."""
    ready = sum(len(rows.inputs) for rows in waiting)
    oldest = 0
    while ready < batch_size:
        if oldest == len(window):
            new = next(images, None)
            if new is None:
                return
            window.append(new)
        votes = window[oldest]
        phase = next((phase for phase, goal in votes.goals.items() if votes.sent.get(phase, 0) < goal), None)
        if phase is None:
            oldest += 1
            continue
        sent = votes.sent.get(phase, 0)
        chunk, within = divmod(sent, CHUNK)
        count = min(CHUNK, votes.goals[phase] - chunk * CHUNK)
        drawn = noise.draw(("smoothing", seed, votes.index, phase, chunk), tuple(votes.pixels.shape), count)
        rows = _Rows(votes, phase, noisy(votes.pixels, drawn[within:]))
        votes.sent[phase] = sent + len(rows.inputs)
        ready += len(rows.inputs)
        waiting.append(rows)


def _take(waiting: deque[_Rows], batch_size: int) -> list[_Rows]:
    """Take the rows of one batch; what is over of the last image waits for the next one."""
    batch: list[_Rows] = []
    room = batch_size
    while waiting and room:
        rows = waiting.popleft()
        batch.append(_Rows(rows.votes, rows.phase, rows.inputs[:room]))
        if len(rows.inputs) > room:
            waiting.appendleft(_Rows(rows.votes, rows.phase, rows.inputs[room:]))
        room -= len(batch[-1].inputs)
    return batch


def _classify(model: Classifier, batch: list[_Rows], compute: Compute) -> Counts:
    inputs = torch.cat([rows.inputs for rows in batch])
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    with torch.inference_mode(), compute.precision():
        logits = model(inputs.contiguous(memory_format=layout))
    if not torch.isfinite(logits).all():
        raise UserError(
            f"the model returns NaN or infinite logits under noise, for image {batch[0].votes.index} or so"
        )
    answers: Counts = logits.argmax(1).cpu().numpy()
    classes = logits.shape[1]
    for rows in batch:
        rows.votes.counts.setdefault(rows.phase, np.zeros(classes, dtype=np.int64))
    return answers


def _count(rows: _Rows, answers: Counts) -> None:
    counts = rows.votes.counts[rows.phase]
    counts += np.bincount(answers, minlength=len(counts))


def open_images(
    split: LabelledImages, indices: list[int], goals: dict[Phase, int], device: torch.device
) -> Iterator[Votes]:
    """Yield the images at `indices`, each read when its turn is near."""
    pile = Batches(split.take(indices), min(16, max(1, len(indices))), seed=0, shuffle=False, device=device)
    position = 0
    for batch in pile.epoch(0):
        # What a loader divided by 255 in float32 comes back exactly.
        pixels = (batch.images * LEVELS).round_().to(torch.int16)
        for image, label in zip(pixels, batch.labels.tolist(), strict=True):
            yield Votes(indices[position], label, image, dict(goals))
            position += 1


def ready(model: Classifier, compute: Compute) -> AbstractContextManager[object]:
    """Put a network into eval mode for the time, and its weights into the memory format."""
    stack = ExitStack()
    if isinstance(model, nn.Module):
        stack.enter_context(eval_mode(model))
        if compute.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return stack
