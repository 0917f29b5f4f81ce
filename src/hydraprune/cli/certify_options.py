"""What `certify` can be asked, and what each method makes of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lightning_fabric import Fabric

from hydraprune.attacks import Eps
from hydraprune.cli.options import TargetOptions
from hydraprune.console import TerminalProgress
from hydraprune.errors import UserError
from hydraprune.pipeline import Target


@dataclass(frozen=True)
class Options(TargetOptions):
    """Certify test images and count what is proven.

    Args:
        method: smoothing certifies the network smoothed by Gaussian noise, in L2, with probability 1 - alpha. The
            others prove the network itself, by bounds that hold for every image of the ball: ibp, crown-ibp,
            fast-lin, crown, alpha-crown, from the cheapest to the tightest, or cascade, which tries them in turn. By
            default cascade where --eps is given and smoothing otherwise.
        eps: bounds: radius in pixels of [0, 1], 0.1 or 2/255; by default the one that the network was trained for.
        norm: bounds: linf or l2; by default the one that the network was trained for.
        attack: bounds: what to attack the images with that no bound certifies, in the same ball, such as pgd50 or
            autoattack; none runs none.
        sigma: smoothing: standard deviation of the noise in pixels of [0, 1]; take the one of the training.
        n: smoothing: samples that bound the probability of the class, for each image; by default 10000. Bounds: test
            images, the first ones, like --n-images.
        n0: smoothing: samples that choose the class.
        alpha: smoothing: the probability, for each image, that its certificate may be wrong.
        radii: smoothing: L2 radii to count at, separated by commas, such as 0,0.25,110/255; by default 0, 0.25, 0.5
            and so on, and 110/255, as far as n samples reach.
        radius: smoothing: one more radius.
        adaptive: smoothing: stop an image as soon as its radius is settled on the radii, at the same alpha.
        n_images: test images, the first ones that --skip leaves; by default all.
        skip: take each skip-th image only.
        max: no image from this index on.
        per_image: a TSV to write image by image. Smoothing (idx, label, predict, radius, correct, time): with the
            same command again, a run that was stopped goes on from it. Bounds (index, label, predicted, verdict,
            method, margin): at the end.
        plot: smoothing: an image file (.png, .svg, .pdf) for the curve of certified accuracy over the radius.
        state: bounds: where a stopped run goes on from; by default a hidden file beside the network. It is deleted at
            the end.
        batch_size: images at once, by default 100; smoothing: noisy images, by default 1000 on a GPU, 64 elsewhere.
        seed: of the noise, or of the attack.
        accelerator: auto, cpu or cuda.
        precision: smoothing: fp32 or bf16; the certificate is that of the network in this precision.
        channels_last: smoothing: NHWC memory format, faster for convolutional networks.
        threads: CPU threads; 0 takes OMP_NUM_THREADS or else every core.
        json: print one JSON object on stdout instead of a table.
    """

    method: str | None = None
    eps: Eps | None = None
    norm: Literal["linf", "l2"] | None = None
    attack: str = "pgd50"
    sigma: float = 0.25
    n: int | None = None
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
    state: Path | None = None
    batch_size: int | None = None
    seed: int = 0
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    threads: int = 0
    json: bool = False

    def refuse(self, names: str, why: str) -> None:
        """Raise `UserError` where one of the options named is not at its default."""
        defaults = {field.name: field.default for field in fields(self)}
        if given := [name for name in names.split() if getattr(self, name) != defaults[name]]:
            raise UserError(f"--{given[0].replace('_', '-')} {why}")


class Certifier(ABC):
    """One way to certify. All that can be refused without the network is refused when it is made.

    Args:
        options: as given; `options.method` is set.
    """

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def run(self, target: Target, fabric: Fabric, progress: TerminalProgress) -> dict[str, Any]:
        """Do the work; return the fields of the JSON object, "n_images" among them."""

    @abstractmethod
    def table(self, result: dict[str, Any]) -> dict[str, str]:
        """Return what to show of the JSON object, besides what every method shows."""

    def clean(self) -> None:  # noqa: B027 - most leave nothing behind
        """Remove what was kept to go on from; called when the result is out."""


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
