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

SUFFIXES = {"compact": ".safetensors", "state-dict": ".safetensors", "onnx": ".onnx"}


@dataclass(frozen=True)
class Options(TargetOptions):
    """Write a network to a file that others can use.

    Args:
        format: compact keeps pruned weights out of the file, without loss; state-dict is dense safetensors for any
            PyTorch code; onnx runs in onnxruntime and others, with a free batch size.
        out: the file to write.
        shrink: take out whole channels that carry nothing, for state-dict and onnx; the outputs stay the same.
    """

    format: Literal["compact", "state-dict", "onnx"] = "compact"
    out: Path | None = None
    shrink: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Export and say how large the file is."""
    options = parse(Options, f"hydraprune {name}", words)
    if options.out is None:
        raise UserError(f"say where to write with --out FILE{SUFFIXES[options.format]}")
    if options.shrink and options.format == "compact":
        raise UserError("a compact artefact keeps the network's shapes; --shrink needs --format state-dict or onnx")
    target = options.open()
    model = target.model
    if options.shrink:
        model = sparsity.shrink(model, torch.zeros(1, *target.architecture.in_shape))
        before, after = (sum(parameter.numel() for parameter in one.parameters()) for one in (target.model, model))
        say(f"{before:,} parameters shrink to {after:,}")
    make_folder(options.out.parent)
    if options.format == "compact":
        size = export.save_compact(options.out, model, target.masks, target.architecture, target.description)
    elif options.format == "state-dict":
        size = export.save_state_dict(options.out, model, options.shrink)
    else:
        size = export.save_onnx(options.out, model, target.architecture.in_shape)
    say(f"{options.out}  {options.format}  {size:,} bytes")
    return 0
