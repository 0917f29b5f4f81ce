"""Certified robust accuracy: what no adversarial example exists for, with the rounding of the network counted in.

An image is certified when every float32 image that `attacks.outside` would accept, ‖x' − x‖ ≤ ε + 10⁻⁶ in the norm
and x' in [0, 1], gets the right label from the network as it is evaluated in its own precision, in whatever order its
sums are taken. docs/soundness.md states and proves it.
"""

import time
from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor, nn

from hydraprune.attacks import Eps
from hydraprune.bounds import METHODS, VERSION, Ascent, Method, Network, Region, Rounding, intermediates_of, margins
from hydraprune.bounds.specification import checked
from hydraprune.console import Progress, SilentProgress
from hydraprune.data import Batch, Batches, LabelledImages, Split
from hydraprune.errors import HydrapruneError, Interrupted, UserError
from hydraprune.evaluation.certified_tally import Done
from hydraprune.evaluation.empirical import ALONE, evaluate
from hydraprune.evaluation.outcome import Adversarial
from hydraprune.evaluation.protocol import AttackProtocol, NormName
from hydraprune.evaluation.share import Share, in_order
from hydraprune.evaluation.state import State, identity_of
from hydraprune.evaluation.verdicts import VERDICTS, Certified
from hydraprune.modes import eval_mode, full_float32

CASCADE: tuple[Method, ...] = ("ibp", "crown-ibp", "crown", "alpha-crown")
CERTIFIERS: tuple[str, ...] = (*METHODS, "cascade")
"""What `certify` takes for a method."""

TOLERANCE = 1e-6
"""The certified ball is larger by this: what the check of adversarial examples forgives, and the rounding of
pixels / 255 in any precision."""
_WIDER = 1 + 1e-9
_ASCENT = Ascent(enough=0.0)


def certify(
    model: nn.Module,
    split: LabelledImages,
    eps: Eps,
    *,
    method: str = "cascade",
    norm: NormName = "linf",
    attack: AttackProtocol | None = None,
    ascent: Ascent | None = None,
    batch_size: int = 100,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    state: State | None = None,
    progress: Progress | None = None,
    title: str = "certify",
    check: Callable[[], None] = lambda: None,
    share: Share = ALONE,
) -> Certified:
    """Prove robustness of every image of `split` that the model classifies rightly, or find an adversarial example.

    Args:
        model: logits from pixels in [0, 1], of supported operations; put into eval mode for the time.
        split: the images.
        eps: radius in pixels of [0, 1].
        method: one of `bounds.METHODS`, or "cascade": each of `CASCADE` on what those before it left.
        norm: "linf" or "l2".
        attack: what to run on images that remain, in the same ball; None runs none.
        ascent: how "alpha-crown" optimises; by default 20 steps, fewer where all margins are above 0 before.
        batch_size: images at once.
        seed: of the attack's random starts.
        device: where the model is.
        workers: processes that decode image files.
        state: where to go on from and to save to; the caller removes it once the result is safe.
        progress: where to show a bar.
        title: of the bar.
        check: called before each batch, method and restart; may raise to stop.
        share: which batches are this process's, where several certify together; all return the same.

    Raises:
        UserError: no image, an unknown method, an attack in another ball, an operation without a bound, logits that
            are not finite or not (batch, classes), a precision other than float32 or float64, or a state file of
            other work.
    """
    if len(split) == 0:
        raise UserError("there is no image to certify")
    methods = _methods(method)
    _check_attack(attack, norm, eps)
    prover = _Prover(model, eps, norm, methods, ascent or _ASCENT, check)
    described = None if attack is None else attack.describe()
    batches = Batches(split, batch_size, seed, shuffle=False, device=device, workers=workers)
    done = (None if state is None else state.load(Done.of)) or Done()
    began = time.monotonic() - done.seconds
    bars = progress or SilentProgress()
    with full_float32(), eval_mode(model), bars.task(title, share.count(len(batches)), done.batches) as bar:
        try:
            start = share.first(done.batches)
            for number, batch in zip(count(start, share.size), batches.epoch(0, start, share.size), strict=False):
                check()
                found = prover.prove(batch, number)
                if attack is not None:
                    found = _attacked(prover.model, batch, found, attack, seed + number, device, check)
                done = done.extended(found, time.monotonic() - began)
                if state is not None and state.due():
                    state.save(done.saved())
                bar.advance()
                bar.note(f"certified {float((done.columns['verdicts'] == 0).double().mean()):.1%}")
        except (Interrupted, KeyboardInterrupt):
            if state is not None and done.batches:
                state.save(done.saved())
            raise
    done = _together(done, share, len(split), batch_size)
    return Certified(
        **done.columns,
        methods=methods,
        examples=None if attack is None else Adversarial(**done.examples),
        attack=described,
        eps=eps,
        norm=norm,
        method=method,
        dtype=str(prover.rounding.dtype).removeprefix("torch."),
        seconds=time.monotonic() - began,
    )


def certification_identity(
    model: nn.Module,
    split: LabelledImages,
    eps: Eps,
    *,
    method: str = "cascade",
    norm: NormName = "linf",
    attack: AttackProtocol | None = None,
    ascent: Ascent | None = None,
    batch_size: int = 100,
    seed: int = 0,
) -> str:
    """Return the SHA-256 of all that determines the outcome of `certify`, to name its state by."""
    settings = {
        "eps": eps.text,
        "norm": norm,
        "methods": list(_methods(method)),
        "ascent": vars(ascent or _ASCENT),
        "bounds": VERSION,
        "graph": Network(model).description,
        "attack": None if attack is None else attack.describe(),
        "batch_size": batch_size,
        "seed": seed,
    }
    return identity_of(model, split, settings)


def _together(done: Done, share: Share, images: int, batch_size: int) -> Done:
    """Return what all processes found, as if one had seen all images in their order."""
    if share.size == 1:
        return done
    parts: list[Done] = [part for part in share.gather(done) if part.columns]
    places = share.places(images, batch_size)
    order = torch.cat(places)
    attacked = VERDICTS.index("attacked")
    of = torch.cat([mine[part.columns["verdicts"] == attacked] for part, mine in zip(parts, places, strict=False)])
    held = [part.examples for part in parts if part.examples]
    return Done(
        columns={key: in_order((part.columns[key] for part in parts), order) for key in parts[0].columns},
        examples={key: in_order((each[key] for each in held), of) for key in (held[0] if held else {})},
    )


def _methods(method: str) -> tuple[Method, ...]:
    if method == "cascade":
        return CASCADE
    for known in METHODS:
        if known == method:
            return (known,)
    raise UserError(f"unknown method '{method}'; known: {', '.join(CERTIFIERS)}")


def _check_attack(attack: AttackProtocol | None, norm: NormName, eps: Eps) -> None:
    if attack is not None and attack.threat != (norm, eps):
        theirs, radius = attack.threat
        raise UserError(
            f"the attack is in the {theirs} ball of {radius}, but the certificate in the {norm} ball of {eps}"
        )


class _Prover:
    """Runs methods on batches."""

    def __init__(
        self,
        model: nn.Module,
        eps: Eps,
        norm: str,
        methods: Sequence[Method],
        ascent: Ascent,
        check: Callable[[], None],
    ) -> None:
        self.model, self._graph = model, Network(model)
        self._norm, self._methods, self._ascent, self._check = norm, methods, ascent, check
        self._radius = (float(eps) + TOLERANCE) * _WIDER
        self.rounding = Rounding(_precision(model))
        if self.rounding.dtype != torch.float32:
            self.model = _Widening(model, self.rounding.dtype)

    @torch.no_grad()
    def prove(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Return verdicts, labels, predictions, methods and margins of one batch, nothing attacked yet."""
        images = batch.images
        self._graph.check(images)
        version = images._version
        logits = self.model(images)
        if images._version != version:
            raise UserError("the network changes its input in place where its trace does not; bounds need it whole")
        if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
            raise UserError(
                f"certificates need logits of shape (batch, classes), 2 or more, not {tuple(logits.shape)}"
            )
        if not torch.isfinite(logits).all():
            raise UserError(f"the model returns NaN or infinite logits in batch {number}")
        predicted = logits.argmax(1)
        rows = torch.nonzero(predicted == batch.labels).squeeze(1)
        verdicts = torch.full_like(batch.labels, VERDICTS.index("error"))
        verdicts[rows] = VERDICTS.index("undecided")
        decided_by = torch.full_like(batch.labels, -1)
        smallest = torch.full(batch.labels.shape, torch.nan, dtype=torch.float64, device=images.device)
        for place, method in enumerate(self._methods):
            if len(rows) == 0:
                break
            self._check()
            found = self._margins(method, images[rows], batch.labels[rows], logits[rows])
            smallest[rows] = torch.fmax(smallest[rows], found)
            proven = found > 0  # false for NaN
            verdicts[rows[proven]] = VERDICTS.index("certified")
            decided_by[rows[proven]] = place
            rows = rows[~proven]
        columns = {
            "verdicts": verdicts,
            "labels": batch.labels,
            "predicted": predicted,
            "decided_by": decided_by,
            "margins": smallest,
        }
        return {name: column.cpu() for name, column in columns.items()}

    def _margins(self, method: Method, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the smallest lower bound of each image's margins, (batch,)."""
        region = Region.ball(images.double(), self._radius, self._norm)
        rows = checked(margins(labels, logits.shape[1], torch.float64), logits.double())
        propagation = self._graph.propagate(region, intermediates_of(method), rounding=self.rounding)
        lower = propagation.interval_bounds(rows).lower
        if method == "alpha-crown":
            lower = torch.maximum(lower, propagation.optimised_lower(rows, self._ascent))
        elif method != "ibp":
            lower = torch.maximum(lower, propagation.linear_bounds(rows, both=False).lower)
        computed = torch.matmul(rows, logits.double().unsqueeze(2)).squeeze(2)
        if bool((computed < lower - 1e-12 * computed.abs()).any()):
            raise HydrapruneError(
                "the network's own logits lie outside its bounds: its graph is not what it computes, "
                "or it is not evaluated in the precision of its parameters; nothing is certified"
            )
        return lower.amin(1)


class _Widening(nn.Module):
    """A network of another precision than float32 on float32 images."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.to(self.dtype))
        return logits


def _precision(model: nn.Module) -> torch.dtype:
    """Return the one precision of all parameters and buffers."""
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UserError(f"the network mixes precisions ({names}); only float32 or float64 alone can be certified")
    return next(iter(dtypes), torch.float32)


def _attacked(
    model: nn.Module,
    batch: Batch,
    found: dict[str, Tensor],
    attack: AttackProtocol,
    seed: int,
    device: torch.device | str,
    check: Callable[[], None],
) -> dict[str, Tensor]:
    """Attack what is undecided; return the verdicts with the examples beside them."""
    rows = torch.nonzero(found["verdicts"] == VERDICTS.index("undecided")).squeeze(1)
    if len(rows) == 0:
        nothing = Adversarial(*(part[:0].cpu() for part in (batch.images, batch.images, *[batch.labels] * 3)))
        return found | {f"examples.{name}": part for name, part in vars(nothing).items()}
    at = rows.to(batch.labels.device)
    # The images are pixels / 255 of a byte each, so the way there and back gives the same bits.
    split = Split((batch.images[at] * 255).round().to(torch.uint8), batch.labels[at])
    outcome = evaluate(
        model, split, attack, batch_size=len(rows), seed=seed, device=device, check=check, title="attack"
    )
    fallen = outcome.benign & ~outcome.robust
    found["verdicts"][rows[fallen]] = VERDICTS.index("attacked")
    return found | {f"examples.{name}": part for name, part in vars(outcome.examples).items()}
