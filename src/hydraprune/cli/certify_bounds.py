"""`certify` by bounds: images that no adversarial example exists for, proven of the network that runs."""

from typing import Any

from lightning_fabric import Fabric

from hydraprune import evaluation
from hydraprune.cli.certify_options import Certifier, Options, chosen
from hydraprune.cli.options import check_seed
from hydraprune.cli.output import check_writable, percent
from hydraprune.console import TerminalProgress
from hydraprune.engine import check_stop
from hydraprune.errors import UserError
from hydraprune.evaluation import State, protocol_from_name
from hydraprune.pipeline import Target

BATCH_SIZE = 100
_SMOOTHING = "sigma n0 alpha radii radius adaptive plot precision channels_last engine"


class Bounds(Certifier):
    """Interval and linear bounds, then an attack on what they leave."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        options.refuse(_SMOOTHING, f"is for randomized smoothing; {options.method} takes --eps and --norm")
        if options.n is not None and options.n_images is not None:
            raise UserError("for bounds --n and --n-images say the same; give one of them")
        self._count = options.n if options.n_images is None else options.n_images
        self._batch_size = BATCH_SIZE if options.batch_size is None else options.batch_size
        if self._batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, got {self._batch_size}")
        check_seed(options.seed)
        check_writable(options.per_image)
        self._state: State | None = None

    def run(self, target: Target, fabric: Fabric, progress: TerminalProgress) -> dict[str, Any]:
        """Prove and attack."""
        options, test = self.options, target.dataset.test
        norm, eps = target.ball(options.norm, options.eps)
        split = test.take(chosen(len(test), options.skip, options.max, self._count))
        what: dict[str, Any] = {
            "method": options.method,
            "norm": norm,
            "attack": None if options.attack == "none" else protocol_from_name(options.attack, norm, eps),
            "batch_size": self._batch_size,
            "seed": options.seed,
        }
        identity = evaluation.certification_identity(target.model, split, eps, **what)
        self._state = options.state_of("certify", identity, options.state)
        result = evaluation.certify(
            fabric.to_device(target.model),
            split,
            eps,
            **what,
            device=fabric.device,
            state=self._state,
            progress=progress,
            title=f"certify {target.name}",
            check=check_stop,
        )
        if options.per_image is not None:
            evaluation.write_verdicts(options.per_image, result)
        return result.summary() | {"n_images": result.n}

    def table(self, result: dict[str, Any]) -> dict[str, str]:
        """Return the counts of verdicts and what they hold for."""
        n, attacked = result["n"], result["attacked"]
        eps = f"{result['eps']:.6g}" + (f" ({result['eps_text']})" if "/" in result["eps_text"] else "")
        return {
            "benign accuracy": f"{percent(result['correct'] / n)} ({result['correct']} of {n})",
            "certified accuracy": f"{percent(result['certified_accuracy'])} ({result['certified']}), a lower bound",
            "attacked": "no attack ran" if attacked is None else f"{attacked} by {self.options.attack}",
            "undecided": str(result["undecided"]),
            "misclassified as they are": str(result["errors"]),
            "ball": f"{result['norm']}, eps {eps}",
            "certificate": f"{result['method']}, of the network in {result['dtype']}",
        }

    def clean(self) -> None:
        """Delete the state."""
        if self._state is not None:
            self._state.remove()
