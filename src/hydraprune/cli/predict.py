"""`predict`: the classes that the smoothed network gives test images, with abstention."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydraprune.cli.certify_options import chosen
from hydraprune.cli.options import TargetOptions, parse
from hydraprune.cli.output import percent, say, show
from hydraprune.console import TerminalProgress
from hydraprune.engine import Hardware, check_stop, graceful
from hydraprune.evaluation import smoothing
from hydraprune.evaluation.smoothing import Compute, Prediction


@dataclass(frozen=True)
class Options(TargetOptions):
    """Classify test images by the network smoothed with Gaussian noise.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1]; take the one of the training.
        n: samples for each image.
        alpha: the probability, for each image, that it gets a class that is not the smoothed network's.
        n_images: test images, the first ones that --skip leaves; by default all.
        skip: take each skip-th image only.
        max: no image from this index on.
        per_image: a TSV to write image by image (idx, label, predict, correct, time; predict is -1 for abstained);
            with the same command again, a run that was stopped goes on from it.
        batch_size: noisy images at once; by default 1000 on a GPU and 64 elsewhere.
        seed: of the noise.
        accelerator: auto, cpu or cuda.
        precision: fp32 or bf16.
        channels_last: NHWC memory format, faster for convolutional networks.
        threads: CPU threads; 0 takes OMP_NUM_THREADS or else every core.
        json: print one JSON object on stdout instead of a table.
    """

    sigma: float = 0.25
    n: int = 100
    alpha: float = 0.001
    n_images: int | None = None
    skip: int = 1
    max: int | None = None
    per_image: Path | None = None
    batch_size: int | None = None
    seed: int = 0
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    threads: int = 0
    json: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Classify and print."""
    options = parse(Options, f"hydraprune {name}", words)
    prediction = Prediction(options.sigma, options.n, options.alpha, options.seed)
    began = time.monotonic()
    fabric = Hardware(accelerator=options.accelerator, threads=options.threads).fabric()
    target = options.open()
    with graceful(), TerminalProgress() as progress:
        rows = smoothing.predict(
            fabric.to_device(target.model),
            target.dataset.test,
            prediction,
            indices=chosen(len(target.dataset.test), options.skip, options.max, options.n_images),
            compute=Compute(options.batch_size, fabric.device, options.channels_last, options.precision == "bf16"),
            log=options.per_image,
            progress=progress,
            title=f"predict {target.name}",
            check=check_stop,
        )
    analysis = smoothing.analyse(rows)
    result = {
        "target": target.name,
        "data": target.dataset.name,
        "accuracy": analysis.certified_accuracy(0.0),
        "abstained": analysis.abstained,
        "n_images": len(rows),
        "samples_total": sum(row.samples for row in rows),
        **prediction.describe(),
        "precision": options.precision,
        "seconds": round(time.monotonic() - began, 3),
    }
    if options.json:
        say(json.dumps(result))
        return 0
    show(
        {
            "network": target.name,
            "data": f"{target.dataset.name}, {len(rows)} test images",
            "accuracy": f"{percent(analysis.certified_accuracy(0.0))}, abstentions count as wrong",
            "abstained": str(analysis.abstained),
            "smoothing": f"sigma {options.sigma:g}, n {options.n}, alpha {options.alpha:g}, seed {options.seed}",
            "seconds": f"{result['seconds']:.1f}",
        }
    )
    return 0
