"""Which command was meant, and which exit code its end becomes.

0 done; 2 a mistake of the user's; 75 stopped by a signal with the state saved (run the same command again);
1 anything else.
"""

import importlib
import sys
from collections.abc import Sequence

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.threads import let_waiting_threads_sleep
from hydraprune.version import __version__

COMMANDS = {
    "run": ("train", "one network: pre-train, prune, fine-tune, evaluate, store, report"),
    "compare": ("train", "a grid of criteria, allocations, sparsities and seeds, in one table"),
    "pretrain": ("train", "only as far as the dense network"),
    "prune": ("train", "only as far as the choice of connections"),
    "finetune": ("train", "only as far as the fine-tuned network"),
    "evaluate": ("evaluate", "benign and robust accuracy of any network"),
    "certify": ("certify", "what is proven of a network, image by image"),
    "export": ("export", "a network as compact artefact, dense state dict or ONNX"),
    "predict": ("predict", "classes of image files, or of test images by a smoothed network, with abstention"),
    "zoo": ("zoo", "compact networks that come with hydraprune; zoo:NAME is a TARGET"),
    "import": ("import_", "a checkpoint of the original HYDRA code as a run folder"),
    "inspect": ("inspect", "which weights pruning kept, layer by layer, beside magnitude's choice"),
    "report": ("show", "write the report of a run folder anew"),
    "status": ("show", "what is finished in a run folder and what is not"),
    "data": ("data", "list data sets, download them or verify their files"),
    "models": ("show", "list architectures"),
}
"""Command -> (module in this package, what it does)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Messages go to stderr, results to stdout."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except HydrapruneError as error:
        if not error.quiet:
            print(f"hydraprune: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("hydraprune: interrupted", file=sys.stderr)  # noqa: T201
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_overview())  # noqa: T201
        return 0
    if words[0] == "--version":
        print(f"hydraprune {__version__}")  # noqa: T201
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'; known: {', '.join(COMMANDS)}")
    let_waiting_threads_sleep()  # before the command loads torch
    module = importlib.import_module(f"hydraprune.cli.{COMMANDS[name][0]}")
    code: int = module.command(name, [_with_underscores(word) for word in rest])
    return code


def _with_underscores(word: str) -> str:
    """Read `--batch-size 8` as `--batch_size 8`: options are named like the parameters they set."""
    option, equals, value = word.partition("=")
    return option[:2] + option[2:].replace("-", "_") + equals + value if option.startswith("--") else word


def _overview() -> str:
    lines = ["usage: hydraprune COMMAND …", "", "Networks 10 to 100 times smaller that stay robust.", "", "commands:"]
    lines += [f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
    lines += ["", "options:", "  --help     this page; after a command, all its options", "  --version  the version"]
    return "\n".join(lines)
