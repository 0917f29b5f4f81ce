"""`export`: a network as compact artefact, dense state dict or ONNX, each checked by a round trip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hydraprune import export, sparsity
from hydraprune.cli.options import TargetOptions, parse
from hydraprune.cli.output import say
from hydraprune.errors import UserError
from hydraprune.io import make_folder

SUFFIXES = {"artefact": ".hp", "state-dict": ".safetensors", "onnx": ".onnx"}


@dataclass(frozen=True)
class Options(TargetOptions):
    """Write a network to a file that others can use.

    Args:
        to: artefact keeps pruned weights out of the file and runs in hydraprune.runtime; state-dict is dense
            safetensors for any PyTorch code; onnx runs in onnxruntime and others, with a free batch size.
        values: how the artefact stores kept weights: fp32 to the bit; fp16 or int8 smaller and rounded.
        output: the file to write.
        shrink: take out whole channels that carry nothing, for state-dict and onnx; the outputs stay the same.
    """

    to: Literal["artefact", "state-dict", "onnx"] = "artefact"
    values: Literal["fp32", "fp16", "int8"] = "fp32"
    output: Path | None = None
    shrink: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Export and say how large the file is."""
    options = parse(Options, f"hydraprune {name}", words)
    if options.output is None:
        raise UserError(f"say where to write with --output FILE{SUFFIXES[options.to]}")
    if options.values != "fp32" and options.to != "artefact":
        raise UserError(f"--values {options.values} is for --to artefact")
    if options.shrink and options.to == "artefact":
        raise UserError("a compact artefact keeps the network's shapes; --shrink needs --to state-dict or onnx")
    target = options.open()
    model = target.model
    if options.shrink:
        model = sparsity.shrink(model, torch.zeros(1, *target.architecture.in_shape))
        before, after = (sum(parameter.numel() for parameter in one.parameters()) for one in (target.model, model))
        say(f"{before:,} parameters shrink to {after:,}")
    make_folder(options.output.parent)
    if options.to == "artefact":
        size = export.save_compact(
            options.output, model, target.masks, target.architecture, target.description, options.values
        )
    elif options.to == "state-dict":
        size = export.save_state_dict(options.output, model, options.shrink)
    else:
        size = export.save_onnx(options.output, model, target.architecture.in_shape)
    say(f"{options.output}  {options.to}  {size:,} bytes")
    return 0
