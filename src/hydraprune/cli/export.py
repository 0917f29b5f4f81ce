"""`export`: a network as compact artefact, dense state dict or ONNX, each checked by a round trip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydraprune import export
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
    """

    format: Literal["compact", "state-dict", "onnx"] = "compact"
    out: Path | None = None


def command(name: str, words: Sequence[str]) -> int:
    """Export and say how large the file is."""
    options = parse(Options, f"hydraprune {name}", words)
    if options.out is None:
        raise UserError(f"say where to write with --out FILE{SUFFIXES[options.format]}")
    target = options.open()
    make_folder(options.out.parent)
    if options.format == "compact":
        size = export.save_compact(options.out, target.model, target.masks, target.architecture, target.description)
    elif options.format == "state-dict":
        size = export.save_state_dict(options.out, target.model)
    else:
        size = export.save_onnx(options.out, target.model, target.architecture.in_shape)
    say(f"{options.out}  {options.format}  {size:,} bytes")
    return 0
