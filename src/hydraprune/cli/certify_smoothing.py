"""`certify --method smoothing`: what holds of the network smoothed by noise, in L2, with probability 1 − alpha."""

from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from matplotlib.backend_bases import FigureCanvasBase

from hydraprune.cli.certify_options import Certifier, Options, chosen
from hydraprune.cli.engines import classifier
from hydraprune.cli.output import check_writable, percent
from hydraprune.console import TerminalProgress
from hydraprune.engine import check_stop
from hydraprune.errors import UserError
from hydraprune.evaluation import smoothing
from hydraprune.evaluation.smoothing import VRA_S_RADIUS, Certification, Compute
from hydraprune.io import atomic_path
from hydraprune.pipeline import Target

SAMPLES = 10_000


class Smoothing(Certifier):
    """Randomized smoothing."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        options.refuse("eps norm attack state", "is for bounds; randomized smoothing takes --sigma and --radii")
        self._certification = _certification(options)
        if options.plot is not None:
            _check_format(options.plot)
            check_writable(options.plot)

    def run(self, target: Target, fabric: Fabric, progress: TerminalProgress) -> dict[str, Any]:
        """Sample and count."""
        options, certification = self.options, self._certification
        rows = smoothing.certify(
            classifier(target, options.engine, fabric),
            target.dataset.test,
            certification,
            indices=chosen(len(target.dataset.test), options.skip, options.max, options.n_images),
            compute=Compute(options.batch_size, fabric.device, options.channels_last, options.precision == "bf16"),
            log=options.per_image,
            identity={} if options.engine == "torch" else {"engine": options.engine},
            progress=progress,
            title=f"certify {target.name}",
            check=check_stop,
        )
        analysis = smoothing.analyse(rows)
        if options.plot is not None:
            save_figure(options.plot, {target.name: analysis})
        accuracy = {radius.text: analysis.certified_accuracy(radius) for radius in certification.radii}
        counted = VRA_S_RADIUS in certification.radii or not certification.adaptive
        hydra = target.dataset.in_shape == (3, 32, 32) and counted
        return {
            "norm": "l2",
            "certified_accuracy": accuracy,
            "vra_s": analysis.certified_accuracy(VRA_S_RADIUS) if hydra else None,
            "average_certified_radius": analysis.average_certified_radius,
            "abstained": analysis.abstained,
            "n_images": len(analysis),
            "samples_total": sum(row.samples for row in rows),
            **{key: value for key, value in certification.describe().items() if key != "radii"},
            "engine": options.engine,
            "precision": options.precision,
        }

    def table(self, result: dict[str, Any]) -> dict[str, str]:
        """Return certified accuracy by radius, and the protocol."""
        shares = result["certified_accuracy"].items()
        return {f"certified at {radius}": percent(accuracy) for radius, accuracy in shares} | {
            "average certified radius": f"{result['average_certified_radius']:.4f}",
            "abstained": str(result["abstained"]),
            "smoothing": f"sigma {result['sigma']:g}, n0 {result['n0']}, n {result['n']}, alpha {result['alpha']:g}, "
            f"seed {result['seed']}, {result['precision']}" + (", adaptive" if result["adaptive"] else ""),
            "samples": f"{result['samples_total']:,}",
        }


def _certification(options: Options) -> Certification:
    n = SAMPLES if options.n is None else options.n
    if options.radii is None:
        Certification(options.sigma, n, options.alpha, options.seed, options.n0, (), options.adaptive)
        radii = smoothing.usual_radii(options.sigma, n, options.alpha, adaptive=options.adaptive)
    else:
        radii = smoothing.parse_radii(options.radii)
    if options.radius is not None:
        radii = smoothing.unique([*radii, *smoothing.parse_radii(options.radius)])
    return Certification(options.sigma, n, options.alpha, options.seed, options.n0, radii, options.adaptive)


def save_figure(path: Path, analyses: dict[str, smoothing.Analysis]) -> None:
    """Write the curve of certified accuracy; the suffix says the format."""
    figure = smoothing.plot(analyses)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))


def _check_format(path: Path) -> None:
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise UserError(f"cannot draw '{path.name}'; known formats: {', '.join(f'.{name}' for name in formats)}")
