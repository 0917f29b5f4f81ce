"""`export`: a network as compact artefact, dense state dict, ONNX or a folder for a model hub, each checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hydraprune import export, pipeline, reports, sparsity
from hydraprune.cli.options import TargetOptions, parse
from hydraprune.cli.output import say
from hydraprune.errors import UserError
from hydraprune.io import make_folder
from hydraprune.pipeline import Target

PLACES = {
    "artefact": "FILE.hp",
    "state-dict": "FILE.safetensors",
    "onnx": "FILE.onnx",
    "model-folder": "DIR",
}


@dataclass(frozen=True)
class Options(TargetOptions):
    """Write a network to a file that others can use.

    Args:
        to: artefact keeps pruned weights out of the file and runs in hydraprune.runtime; state-dict is dense
            safetensors for any PyTorch code; onnx runs in onnxruntime and others, with a free batch size;
            model-folder is a folder for a model hub: a card with every number of the run, the artefact, the state
            dict, the recipe.
        values: how the artefact stores kept weights: fp32 to the bit; fp16 or int8 smaller and rounded.
        output: the file or folder to write.
        shrink: take out whole channels that carry nothing; the outputs stay the same.
        license: of the weights, for the card of a model-folder: an SPDX identifier such as apache-2.0.
    """

    to: Literal["artefact", "state-dict", "onnx", "model-folder"] = "artefact"
    values: Literal["fp32", "fp16", "int8"] = "fp32"
    output: Path | None = None
    shrink: bool = False
    license: str = "unknown"


def command(name: str, words: Sequence[str]) -> int:
    """Export and say how large it is."""
    options = parse(Options, f"hydraprune {name}", words)
    if options.output is None:
        raise UserError(f"say where to write with --output {PLACES[options.to]}")
    _check_fits(options)
    if options.to == "model-folder":
        size = _model_folder(options, options.output)
        say(f"{options.output}  {options.to}  compact network of {size:,} bytes")
    else:
        size = _file(options, options.output)
        say(f"{options.output}  {options.to}  {size:,} bytes")
    return 0


def _check_fits(options: Options) -> None:
    if options.values != "fp32" and options.to != "artefact":
        raise UserError(f"--values {options.values} is for --to artefact")
    if options.license != "unknown" and options.to != "model-folder":
        raise UserError("--license is for the card of --to model-folder")
    if options.shrink and options.to == "model-folder":
        raise UserError("a model folder holds the network that was evaluated, not a shrunk one")


def _model_folder(options: Options, folder: Path) -> int:
    if options.target is None:
        raise UserError("a model folder is of a TARGET that a run evaluated: a run folder or a compact file in one")
    evaluated = pipeline.evaluated_network(options.target, options.license)
    card = reports.write_model_folder(folder, options.open(), evaluated)
    size: int = card["size_bytes"]
    return size


def _file(options: Options, path: Path) -> int:
    target = options.open()
    if options.shrink:
        target = _shrunk(target)
    model, architecture = target.model, target.architecture
    make_folder(path.parent)
    if options.to == "state-dict":
        return export.save_state_dict(path, model, architecture.shrunk)
    if options.to == "onnx":
        return export.save_onnx(path, model, architecture.in_shape)
    said = _of_rounded(target.description, options.values)
    return export.save_compact(path, model, target.masks, architecture, said, options.values)


def _of_rounded(description: dict[str, Any], values: str) -> dict[str, Any]:
    """Return what a file says of itself; numbers that were measured before its weights are rounded say so."""
    measured = description.get("measured")
    if values == "fp32" or not isinstance(measured, dict):
        return description
    return description | {"measured": {**measured, "before": f"weights were rounded to {values}"}}


def _shrunk(target: Target) -> Target:
    model = sparsity.shrink(target.model, torch.zeros(1, *target.architecture.in_shape))
    before, after = (sum(parameter.numel() for parameter in one.parameters()) for one in (target.model, model))
    say(f"{before:,} parameters shrink to {after:,}")
    # A channel takes its part of a mask with it; what is left of one is where its layer is not 0.
    masks = {name: model.get_parameter(name) != 0 for name in target.masks}
    return replace(target, model=model, masks=masks, architecture=replace(target.architecture, shrunk=True))
