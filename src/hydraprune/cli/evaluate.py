"""`evaluate`: benign and robust accuracy of a run folder, an artefact, or any network with its weights."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from hydraprune import data, evaluation, io, models
from hydraprune.attacks import Eps
from hydraprune.cli.options import TargetOptions, check_seed, parse
from hydraprune.cli.output import check_writable, percent, say
from hydraprune.console import TerminalProgress
from hydraprune.engine import Hardware, check_stop, graceful
from hydraprune.evaluation import AttackProtocol, Empirical, protocol_from_name
from hydraprune.pipeline import Target


@dataclass(frozen=True)
class Options(TargetOptions):
    """Attack a network on test images and count what stands.

    Args:
        attack: pgdSTEPS or pgdSTEPSxRESTARTS (pgd50 means 50 steps and 10 restarts), autoattack, or one of its
            attacks: apgd-ce, apgd-t, fab-t, square.
        norm: linf or l2; by default the one that the network was trained for.
        eps: radius in pixels of [0, 1], 0.1 or 8/255; by default the one that the network was trained for.
        n: test images, the first n; by default all.
        batch_size: images at once.
        seed: of all that the attacks draw.
        sanity: look for reasons not to believe the number (on at most 64 images); what is found is a warning.
        state: where a stopped evaluation goes on from; by default a hidden file beside the network. It is deleted at
            the end.
        save_adversarial: a .safetensors file for every adversarial example that counted.
        model_card: a .json file for a model card in the form of RobustBench.
        accelerator: auto, cpu or cuda.
        threads: CPU threads; 0 takes OMP_NUM_THREADS or else every core.
        sparse_attacks: attack on kernels that leave out removed weights: true, false, or none: on a CPU, where that
            is faster. What they find is judged by torch.
        workers: processes that decode image files; images in memory need none.
        json: print one JSON object on stdout instead of a table.
    """

    attack: str = "pgd50"
    norm: Literal["linf", "l2"] | None = None
    eps: Eps | None = None
    n: int | None = None
    batch_size: int = 500
    seed: int = 0
    sanity: bool = True
    state: Path | None = None
    save_adversarial: Path | None = None
    model_card: Path | None = None
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    sparse_attacks: bool | None = None
    workers: int = 0
    json: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Evaluate, print, and write what was asked for."""
    options = parse(Options, f"hydraprune {name}", words)
    check_seed(options.seed)
    check_writable(options.save_adversarial, options.model_card)
    hardware = Hardware(options.accelerator, threads=options.threads, sparse_attacks=options.sparse_attacks)
    fabric = hardware.fabric()
    target = options.open()
    protocol = protocol_from_name(options.attack, *target.ball(options.norm, options.eps))
    split = target.dataset.test if options.n is None else data.first(target.dataset.test, options.n)
    keep = None if options.save_adversarial else 0
    identity = evaluation.identity(target.model, split, protocol, options.batch_size, options.seed, keep)
    state = options.state_of("evaluate", identity, options.state)
    with graceful(), TerminalProgress() as progress:
        model = fabric.to_device(target.model)
        measured = evaluation.evaluate(
            model,
            split,
            protocol,
            batch_size=options.batch_size,
            seed=options.seed,
            device=fabric.device,
            workers=options.workers,
            keep=keep,
            sanity="full" if options.sanity else "off",
            state=state,
            progress=progress,
            title=target.name,
            check=check_stop,
            attacked=hardware.attacks.on(model, target.architecture.in_shape, fabric.device, progress.say),
        )
    result = _result(target, protocol, measured)
    if options.save_adversarial is not None:
        _save_adversarial(options.save_adversarial, measured, result, target.dataset.class_names)
    if options.model_card is not None:
        io.write_json(options.model_card, _model_card(target, protocol, measured))
    if state is not None:
        state.remove()
    if options.json:
        say(json.dumps(result))
    else:
        _print(result)
    return 0


def _result(target: Target, protocol: AttackProtocol, measured: Empirical) -> dict[str, Any]:
    norm, eps = protocol.threat
    benign_interval, robust_interval = measured.intervals(len(target.dataset.test))
    return {
        "target": target.name,
        "data": target.dataset.name,
        "benign_accuracy": measured.benign_accuracy,
        "benign_confidence_interval": benign_interval,
        "robust_accuracy": measured.robust_accuracy,
        "confidence_interval": robust_interval,
        "n": len(measured.benign),
        "attack": protocol.name,
        "norm": norm,
        "eps": float(eps),
        "eps_text": eps.text,
        "protocol": protocol.describe(),
        "refused": measured.refused,
        "warnings": list(measured.warnings),
        "seconds": round(measured.seconds, 3),
    }


def _save_adversarial(path: Path, measured: Empirical, result: dict[str, Any], class_names: Sequence[str]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in vars(measured.examples).items()}
    tensors["index"] = torch.nonzero(measured.benign & ~measured.robust).squeeze(1)
    written = {key: result[key] for key in ("target", "data", "norm", "eps", "eps_text", "protocol", "n")}
    metadata = {
        "description": (
            f"adversarial examples that {result['attack']} found against {result['target']}, pixels in [0, 1]; "
            f"index counts the test images of {result['data']} from 0"
        ),
        "evaluation": json.dumps(written),
        "class_names": json.dumps(list(class_names)),
    }
    io.write_bytes(path, save(tensors, metadata))


def _model_card(target: Target, protocol: AttackProtocol, measured: Empirical) -> dict[str, object]:
    return evaluation.model_card(
        measured,
        protocol,
        name=str(target.description.get("name", target.name)),
        dataset=target.dataset.name,
        architecture=target.architecture.name,
        population=len(target.dataset.test),
        additional_data=_additional_data(target),
    )


def _additional_data(target: Target) -> bool | None:
    """Return whether training saw more than the data set; None where only the user knows."""
    recipe = target.description.get("recipe")
    parts = [recipe.get(part, {}) for part in ("data", "model")] if isinstance(recipe, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        return None
    data_part, model_part = parts
    if data_part.get("extra"):
        return True
    # Weights that training started from, and modules of the user's own, may have seen anything.
    own = target.architecture.name not in models.MODELS
    return None if model_part.get("weights") or own else False


def _print(result: dict[str, Any]) -> None:
    eps = f"{result['eps']:.6g}" + (f" ({result['eps_text']})" if "/" in result["eps_text"] else "")
    table = Table(show_header=False)
    for key, value in (
        ("network", result["target"]),
        ("data", f"{result['data']}, {result['n']} test images"),
        ("benign accuracy", _with_interval(result["benign_accuracy"], result["benign_confidence_interval"])),
        (
            "robust accuracy",
            f"{_with_interval(result['robust_accuracy'], result['confidence_interval'])}, an upper bound",
        ),
        ("attack", f"{result['attack']}, {result['norm']}, eps {eps}"),
        ("seconds", f"{result['seconds']:.1f}"),
    ):
        table.add_row(key, value)
    Console(file=sys.stdout).print(table)
    for warning in result["warnings"]:
        say(f"warning: {warning}")


def _with_interval(share: float, interval: list[float] | None) -> str:
    """Return `87.3 %`, and for a sample its 95 % interval."""
    if interval is None:
        return percent(share)
    low, high = interval
    return f"{percent(share)} (95 % interval {100 * low:.1f} to {100 * high:.1f})"
