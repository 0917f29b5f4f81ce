"""`certify`: what is proven of a network, image by image."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table
from torch import nn

from hydraprune.cli.options import TargetOptions, parse
from hydraprune.cli.output import percent, say
from hydraprune.console import TerminalProgress
from hydraprune.engine import Hardware, check_stop, graceful
from hydraprune.errors import UserError
from hydraprune.evaluation import smoothing
from hydraprune.evaluation.smoothing import VRA_S_RADIUS, Certification, Compute
from hydraprune.export import SparseNetwork
from hydraprune.io import atomic_path, make_folder
from hydraprune.pipeline import Target


@dataclass(frozen=True)
class Options(TargetOptions):
    """Certify test images and count what is proven.

    Args:
        method: how; smoothing certifies the network smoothed by Gaussian noise, in L2, with probability 1 - alpha.
        sigma: smoothing: standard deviation of the noise in pixels of [0, 1]; take the one of the training.
        n: smoothing: samples that bound the probability of the class, for each image.
        n0: smoothing: samples that choose the class.
        alpha: smoothing: the probability, for each image, that its certificate may be wrong.
        radii: L2 radii to count at, separated by commas, such as 0,0.25,110/255; by default 0, 0.25, 0.5 and so on,
            and 110/255, as far as n samples reach.
        radius: one more radius.
        adaptive: stop an image as soon as its radius is settled on the radii, at the same alpha.
        n_images: test images, the first ones that --skip leaves; by default all.
        skip: take each skip-th image only.
        max: no image from this index on.
        per_image: a TSV to write image by image (idx, label, predict, radius, correct, time); with the same command
            again, a run that was stopped goes on from it.
        plot: an image file (.png, .svg, .pdf) for the curve of certified accuracy over the radius.
        batch_size: noisy images at once; by default 1000 on a GPU and 64 elsewhere.
        seed: of the noise.
        engine: torch, or sparse for the runtime of compact files, which is faster for pruned networks on a CPU; the
            certificate is that of the network as the engine computes it.
        accelerator: auto, cpu or cuda.
        precision: fp32 or bf16; the certificate is that of the network in this precision.
        channels_last: NHWC memory format, faster for convolutional networks.
        threads: CPU threads; 0 takes every core.
        json: print one JSON object on stdout instead of a table.
    """

    method: str = "smoothing"
    sigma: float = 0.25
    n: int = 10_000
    n0: int = 100
    alpha: float = 0.001
    radii: str | None = None
    radius: str | None = None
    adaptive: bool = False
    n_images: int | None = None
    skip: int = 1
    max: int | None = None
    per_image: Path | None = None
    plot: Path | None = None
    batch_size: int | None = None
    seed: int = 0
    engine: Literal["torch", "sparse"] = "torch"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    threads: int = 0
    json: bool = False


Prepared = Callable[[Target, Fabric, TerminalProgress], dict[str, Any]]


def command(name: str, words: Sequence[str]) -> int:
    """Certify and print."""
    options = parse(Options, f"hydraprune {name}", words)
    if options.method not in METHODS:
        raise UserError(f"unknown method '{options.method}'; known: {', '.join(METHODS)}")
    # All that can be refused without the network is refused before it is loaded.
    certify = METHODS[options.method](options)
    began = time.monotonic()
    fabric = hardware(options.engine, options.accelerator, options.precision, options.threads).fabric()
    target = options.open()
    with graceful(), TerminalProgress() as progress:
        result = certify(target, fabric, progress)
    result = {"target": target.name, "data": target.dataset.name, "method": options.method, **result}
    result["seconds"] = round(time.monotonic() - began, 3)
    if options.json:
        say(json.dumps(result))
    else:
        show(_table(result))
    return 0


def _smoothing(options: Options) -> Prepared:
    """Check the options of randomized smoothing; return the run."""
    certification = _certification(options)

    def run(target: Target, fabric: Fabric, progress: TerminalProgress) -> dict[str, Any]:
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
            make_folder(options.plot.parent)
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

    return run


def _certification(options: Options) -> Certification:
    if options.radii is None:
        Certification(options.sigma, options.n, options.alpha, options.seed, options.n0, (), options.adaptive)
        radii = smoothing.usual_radii(options.sigma, options.n, options.alpha, adaptive=options.adaptive)
    else:
        radii = smoothing.parse_radii(options.radii)
    if options.radius is not None:
        radii = smoothing.unique([*radii, *smoothing.parse_radii(options.radius)])
    return Certification(options.sigma, options.n, options.alpha, options.seed, options.n0, radii, options.adaptive)


METHODS: dict[str, Callable[[Options], Prepared]] = {"smoothing": _smoothing}
"""Method -> its own checks, which return the run: (target, fabric, progress) -> the JSON object's fields."""


def hardware(engine: str, accelerator: Literal["auto", "cpu", "cuda"], precision: str, threads: int) -> Hardware:
    """Return where to compute; `UserError` for what the sparse runtime has not."""
    if engine == "sparse" and (accelerator == "cuda" or precision == "bf16"):
        raise UserError("--engine sparse computes in fp32 on the CPU; leave out --accelerator and --precision")
    return Hardware(accelerator="cpu" if engine == "sparse" else accelerator, threads=threads)


def classifier(target: Target, engine: str, fabric: Fabric) -> nn.Module:
    """Return the network as the engine computes it."""
    if engine == "torch":
        return fabric.to_device(target.model)
    return SparseNetwork(target.model, target.masks, target.architecture, torch.get_num_threads())


def chosen(available: int, skip: int, stop: int | None, count: int | None) -> list[int]:
    """Return the indices of the images that are meant; `UserError` where there are none, or fewer than asked for."""
    if skip < 1:
        raise UserError(f"--skip takes each skip-th image: at least 1, got {skip}")
    if count is not None and count < 1:
        raise UserError(f"--n-images must be at least 1, got {count}")
    indices = list(range(0, available if stop is None else min(stop, available), skip))
    if not indices or (count is not None and count > len(indices)):
        left = f"--skip and --max leave {len(indices)} of {available}"
        raise UserError(f"asked for {count or 1} test images, but {left}")
    return indices[:count]


def save_figure(path: Path, analyses: dict[str, smoothing.Analysis]) -> None:
    """Write the curve of certified accuracy; the suffix says the format."""
    figure = smoothing.plot(analyses)
    formats = figure.canvas.get_supported_filetypes()
    kind = path.suffix.removeprefix(".")
    if kind not in formats:
        raise UserError(f"cannot draw '{path.name}'; known formats: {', '.join(f'.{name}' for name in formats)}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind)


def show(lines: dict[str, str]) -> None:
    """Print a table of two columns on stdout."""
    table = Table(show_header=False)
    for line in lines.items():
        table.add_row(*line)
    Console(file=sys.stdout).print(table)


def _table(result: dict[str, Any]) -> dict[str, str]:
    lines = {"network": result["target"], "data": f"{result['data']}, {result['n_images']} test images"}
    for radius, accuracy in result["certified_accuracy"].items():
        lines[f"certified at {radius}"] = percent(accuracy)
    lines |= {
        "average certified radius": f"{result['average_certified_radius']:.4f}",
        "abstained": str(result["abstained"]),
        "smoothing": f"sigma {result['sigma']:g}, n0 {result['n0']}, n {result['n']}, alpha {result['alpha']:g}, "
        f"seed {result['seed']}, {result['precision']}" + (", adaptive" if result["adaptive"] else ""),
        "samples": f"{result['samples_total']:,}",
        "seconds": f"{result['seconds']:.1f}",
    }
    return lines
