"""`evaluate`: benign and robust accuracy of a run folder, an artefact, or any network with its weights."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from hydraprune import data, evaluation
from hydraprune.attacks import Eps
from hydraprune.cli.options import TargetOptions, parse
from hydraprune.cli.output import percent, say
from hydraprune.console import TerminalProgress
from hydraprune.engine import Hardware, check_stop, graceful
from hydraprune.errors import UserError
from hydraprune.evaluation import Empirical, Protocol
from hydraprune.pipeline import Target


@dataclass(frozen=True)
class Options(TargetOptions):
    """Attack a network on test images and count what stands.

    Args:
        attack: pgdSTEPS or pgdSTEPSxRESTARTS; pgd50 means 50 steps and 10 restarts.
        norm: linf or l2; by default the one that the network was trained for.
        eps: radius in pixels of [0, 1], 0.1 or 8/255; by default the one that the network was trained for.
        n: test images, the first n; by default all.
        batch_size: images at once.
        seed: of the attack's random starts.
        accelerator: auto, cpu or cuda.
        threads: CPU threads; 0 takes every core.
        workers: processes that decode image files; images in memory need none.
        json: print one JSON object on stdout instead of a table.
    """

    attack: str = "pgd50"
    norm: Literal["linf", "l2"] | None = None
    eps: Eps | None = None
    n: int | None = None
    batch_size: int = 500
    seed: int = 0
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    workers: int = 0
    json: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Evaluate and print."""
    options = parse(Options, f"hydraprune {name}", words)
    began = time.monotonic()
    fabric = Hardware(accelerator=options.accelerator, threads=options.threads).fabric()
    target = options.open()
    protocol = _protocol(options, target)
    split = target.dataset.test if options.n is None else data.first(target.dataset.test, options.n)
    with graceful(), TerminalProgress() as progress:
        measured = evaluation.evaluate(
            fabric.to_device(target.model),
            split,
            protocol,
            batch_size=options.batch_size,
            seed=options.seed,
            device=fabric.device,
            workers=options.workers,
            progress=progress,
            title=target.name,
            check=check_stop,
        )
    result = _result(target, protocol, measured, time.monotonic() - began)
    if options.json:
        say(json.dumps(result))
    else:
        _print(result)
    return 0


def _protocol(options: Options, target: Target) -> Protocol:
    norm: Literal["linf", "l2"] = options.norm or ("l2" if target.norm == "l2" else "linf")
    eps = target.eps if options.eps is None else options.eps
    if options.eps is None and not eps > 0:
        raise UserError(f"'{target.name}' does not say which radius it was trained for; give --eps, such as 8/255")
    return Protocol.from_name(options.attack, norm, eps)


def _result(target: Target, protocol: Protocol, measured: Empirical, seconds: float) -> dict[str, Any]:
    warnings = [f"{measured.refused} adversarial examples did not pass the check"] if measured.refused else []
    return {
        "target": target.name,
        "data": target.dataset.name,
        "benign_accuracy": measured.benign_accuracy,
        "robust_accuracy": measured.robust_accuracy,
        "n": len(measured.benign),
        "attack": protocol.name,
        "norm": protocol.attack.norm,
        "eps": float(protocol.attack.eps),
        "eps_text": protocol.attack.eps.text,
        "protocol": protocol.describe(),
        "warnings": warnings,
        "seconds": round(seconds, 3),
    }


def _print(result: dict[str, Any]) -> None:
    eps = f"{result['eps']:.6g}" + (f" ({result['eps_text']})" if "/" in result["eps_text"] else "")
    table = Table(show_header=False)
    for key, value in (
        ("network", result["target"]),
        ("data", f"{result['data']}, {result['n']} test images"),
        ("benign accuracy", percent(result["benign_accuracy"])),
        ("robust accuracy", f"{percent(result['robust_accuracy'])}, an upper bound"),
        ("attack", f"{result['attack']}, {result['norm']}, eps {eps}"),
        ("seconds", f"{result['seconds']:.1f}"),
    ):
        table.add_row(key, value)
    Console(file=sys.stdout).print(table)
    for warning in result["warnings"]:
        say(f"warning: {warning}")
