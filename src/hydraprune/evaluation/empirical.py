"""Empirical robust accuracy: what survives the attacks we ran, an upper bound on what is truly robust."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor, nn

from hydraprune.attacks import Guarded, outside
from hydraprune.console import Progress, SilentProgress, Task
from hydraprune.data import Batch, Batches, LabelledImages
from hydraprune.data.seeds import derived_generator
from hydraprune.errors import Interrupted, UserError
from hydraprune.evaluation.outcome import Adversarial, Empirical
from hydraprune.evaluation.protocol import AttackProtocol
from hydraprune.evaluation.sanity import Sanity, sanity_warnings
from hydraprune.evaluation.share import Share, in_order
from hydraprune.evaluation.state import State, identity_of
from hydraprune.evaluation.tally import BatchTally, Tally
from hydraprune.modes import eval_mode

ALONE = Share()


def evaluate(
    model: nn.Module,
    split: LabelledImages,
    protocol: AttackProtocol,
    *,
    batch_size: int = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    keep: int | None = None,
    sanity: Sanity = "off",
    state: State | None = None,
    progress: Progress | None = None,
    title: str = "evaluate",
    check: Callable[[], None] = lambda: None,
    share: Share = ALONE,
    attacked: nn.Module | None = None,
) -> Empirical:
    """Attack every image of `split` that the model classifies rightly.

    An image counts as fooled when an adversarial example passes the check: inside the ball (float64) and in [0, 1],
    and misclassified when the network is run on it again. PGD looks at every iterate, not only the last. What an
    attack draws is a function of (seed, batch, round): an evaluation stopped and resumed counts the same.

    Args:
        model: logits from pixels in [0, 1]; put into eval mode for the time.
        split: the images.
        protocol: what to attack with.
        batch_size: images at once.
        seed: of all that the attacks draw.
        device: where the model is.
        workers: processes that decode image files; images in memory need none.
        keep: adversarial examples to return, the first ones; none means all.
        sanity: which checks look for reasons not to believe the number; see `sanity_warnings`.
        state: where to go on from and to save to; the caller removes it once the result is safe.
        progress: where to show a bar, with the bound on robust accuracy so far.
        title: of the bar.
        check: called before each batch, round and forward pass of an attack; may raise to stop.
        share: which batches are this process's, where several evaluate together; all return the same.
        attacked: what the attacks run on in place of the model: the same function, sooner computed. Every prediction
            that counts is the model's.

    Raises:
        UserError: the split is empty, or the model's logits or gradients are NaN or infinite, for an image or under
            attack (the message names the batch).
        Interrupted: from `check`, with the state saved.
    """
    if len(split) == 0:
        raise UserError("there is no image to evaluate on")
    came_training = any(module.training for module in model.modules())
    batches = Batches(split, batch_size, seed, shuffle=False, device=device, workers=workers)
    tally = (None if state is None else state.load(Tally.of)) or Tally()
    began = time.monotonic() - tally.seconds

    def save() -> None:
        if state is not None:
            tally.seconds = time.monotonic() - began
            state.save(tally.saved())

    with eval_mode(model):
        bar = (progress or SilentProgress()).task(title, share.count(len(batches)), tally.batches)
        try:
            with bar as shown:
                for _ in _rounds(model, attacked or model, batches, protocol, tally, keep, check, shown, share):
                    if state is not None and state.due():
                        save()
            result = _result(_together(tally, share, len(split), batch_size, keep))
            found = sanity_warnings(
                model, split, protocol, result, sanity, seed=seed, device=device, workers=workers, check=check
            )
        except (Interrupted, KeyboardInterrupt):
            save()
            raise
    refused = f"{result.refused} adversarial examples did not pass the check and were not counted"
    mode = "the model came in training mode; it was measured in eval mode"
    warnings = [mode] * (came_training and sanity != "off") + [refused] * bool(result.refused) + found
    return replace(result, warnings=tuple(warnings), seconds=time.monotonic() - began)


def identity(
    model: nn.Module,
    split: LabelledImages,
    protocol: AttackProtocol,
    batch_size: int,
    seed: int,
    keep: int | None,
) -> str:
    """Return the SHA-256 of all that determines the outcome of `evaluate`: network, images, attack, batches, seed."""
    return identity_of(model, split, [protocol.describe(), batch_size, seed, keep])


def _rounds(
    model: nn.Module,
    attacked: nn.Module,
    batches: Batches,
    protocol: AttackProtocol,
    tally: Tally,
    keep: int | None,
    check: Callable[[], None],
    bar: Task,
    share: Share,
) -> Iterator[None]:
    """Work `tally` up to the end; yield whenever it may be saved: after each round and each batch."""
    eps = protocol.threat[1]
    start = share.first(tally.batches)
    for number, batch in zip(count(start, share.size), batches.epoch(0, start, share.size), strict=False):
        check()
        now = _opened(model, batch, number) if tally.under_way is None else _moved(tally.under_way, batch)
        tally.under_way = now
        for index in range(now.rounds, len(protocol.rounds) if eps > 0 else 0):
            rows = torch.nonzero(now.standing).squeeze(1)
            if len(rows) == 0:
                break
            check()
            seed = derived_generator("evaluation", batches.seed, number, index).initial_seed()
            _attack(model, attacked, batch, now, rows, protocol, index, seed, number, check)
            now.rounds = index + 1
            bar.note(f"{_bound(tally, now)} after {protocol.rounds[index]}")
            yield
        tally.close(now, batch, keep)
        bar.advance()
        bar.note(_bound(tally))
        yield


def _opened(model: nn.Module, batch: Batch, number: int) -> BatchTally:
    predicted = _predict(model, batch.images, f"in batch {number}")
    benign = predicted == batch.labels
    return BatchTally(predicted, benign, benign.clone(), batch.images.clone(), predicted.clone())


def _moved(saved: BatchTally, batch: Batch) -> BatchTally:
    """Return a batch from a file on the device of its images."""
    device = batch.images.device
    for key, part in vars(saved).items():
        if isinstance(part, Tensor):
            setattr(saved, key, part.to(device))
    return saved


def _attack(
    model: nn.Module,
    attacked: nn.Module,
    batch: Batch,
    now: BatchTally,
    rows: Tensor,
    protocol: AttackProtocol,
    index: int,
    seed: int,
    number: int,
    check: Callable[[], None],
) -> None:
    """Run one round on `rows` of the batch and note what it found and the check confirmed."""
    where = f"under attack in batch {number}"
    images, labels = batch.images[rows], batch.labels[rows]
    candidates, found = protocol.candidates(Guarded(attacked, where, check), images, labels, index, seed)
    again = _predict(model, candidates, where)
    fooled = again != labels
    norm, eps = protocol.threat
    confirmed = fooled & ~outside(images, candidates, norm, eps)
    now.refused += int(((found | fooled) & ~confirmed).sum())
    taken = rows[confirmed]
    now.adversarial[taken], now.seen[taken] = candidates[confirmed], again[confirmed]
    now.standing[taken] = False


def _predict(model: nn.Module, images: Tensor, where: str) -> Tensor:
    with torch.no_grad():
        logits: Tensor = Guarded(model, where)(images)
    return logits.argmax(1)


def _bound(tally: Tally, now: BatchTally | None = None) -> str:
    robust = tally.robust if now is None else torch.cat([tally.robust, now.standing.cpu()])
    return f"robust ≤ {float(robust.double().mean()):.1%}"


def _together(tally: Tally, share: Share, images: int, batch_size: int, keep: int | None) -> Tally:
    """Return what all processes found, as if one had seen all images in their order."""
    if share.size == 1:
        return tally
    parts: list[Tally] = share.gather(tally)
    places = share.places(images, batch_size)
    order = torch.cat(places)
    # An example belongs to an image that was right and fell; each process holds its first ones.
    fallen = [mine[part.benign & ~part.robust] for part, mine in zip(parts, places, strict=True)]
    held = [vars(part.examples) for part in parts if part.examples is not None]
    of = torch.cat(
        [mine[: len(part.examples.labels)] for part, mine in zip(parts, fallen, strict=True) if part.examples]
    )
    examples = Adversarial(**{key: in_order((each[key] for each in held), of)[:keep] for key in held[0]})
    return Tally(
        benign=in_order((part.benign for part in parts), order),
        robust=in_order((part.robust for part in parts), order),
        examples=examples,
        refused=sum(part.refused for part in parts),
    )


def _result(tally: Tally) -> Empirical:
    assert tally.examples is not None
    return Empirical(tally.benign, tally.robust, tally.examples, tally.refused)
