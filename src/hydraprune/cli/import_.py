"""`import`: a checkpoint of the original HYDRA code becomes a run folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydraprune import pipeline
from hydraprune.attacks import Eps
from hydraprune.cli.options import parse
from hydraprune.cli.output import percent, say
from hydraprune.errors import UserError
from hydraprune.pipeline import Imported


@dataclass(frozen=True)
class TrainedOn:
    """The data set that the network was trained on; its files need not be there.

    Args:
        name: a data set; `--data NAME` for short.
    """

    name: str = "cifar10"


@dataclass(frozen=True)
class Options:
    """Make a run folder of a checkpoint of the original HYDRA code, with the same masks and logits.

    Args:
        target: the checkpoint, such as model_best.pth.tar; also the first plain argument.
        arch: the original's name of the network: vgg16_bn, wrn_28_4, wrn_28_10, resnet18, cifar_model, …
        sparsity: the share of each layer's weights that was removed, 1 - k: 0.99 where it was pruned with --k 0.01,
            0 for a pre-trained network. Not needed for files without scores, which are dense.
        out: the run folder.
        data: what it was trained on.
        normalize: whether it was trained with the original's --normalize.
        norm: of the threat model that it was trained for, linf or l2.
        eps: its radius in pixels of [0, 1], 0.031 or 8/255.
        json: print one JSON object on stdout instead of lines.
    """

    target: Path | None = None
    arch: str | None = None
    sparsity: float | None = None
    out: Path | None = None
    data: TrainedOn = TrainedOn()
    normalize: bool = False
    norm: Literal["linf", "l2"] = "linf"
    eps: Eps = Eps("8/255")
    json: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Import and say what came of it."""
    options = parse(Options, f"hydraprune {name}", words)
    if options.target is None or options.arch is None or options.out is None:
        raise UserError("give the checkpoint, --arch NAME and --out DIR: import OLD.pth --arch vgg16_bn --out RUN")
    imported = pipeline.import_checkpoint(
        options.target,
        options.arch,
        options.sparsity,
        options.out,
        data=options.data.name,
        normalize=options.normalize,
        norm=options.norm,
        eps=options.eps,
    )
    if options.json:
        places = {"folder": str(imported.stage.folder), "artefact": str(imported.artefact)}
        say(json.dumps(imported.outcome | places))
    else:
        _print(imported)
    return 0


def _print(imported: Imported) -> None:
    outcome = imported.outcome
    kept, total = (sum(layer[key] for layer in outcome["layers"]) for key in ("kept", "total"))
    say(f"weights   {kept:,} of {total:,} kept, {percent(1 - kept / total)} removed")
    say(f"stage     {imported.stage.folder}")
    say(f"artefact  {imported.artefact}  ({outcome['size_bytes']:,} bytes, dense {outcome['dense_size_bytes']:,})")
    if tied := outcome["network"]["imported"]["tied"]:
        say(
            f"note: equal scores on both sides of the cut in {', '.join(tied)}; which of those weights stay, the "
            "original leaves to the machine that it runs on"
        )
