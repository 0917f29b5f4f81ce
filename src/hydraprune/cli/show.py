"""`report`, `status`, `models`: commands that show what is there."""

import fcntl
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hydraprune import models, pipeline, reports
from hydraprune.cli.options import parse
from hydraprune.cli.output import say
from hydraprune.engine import read_log
from hydraprune.errors import UserError
from hydraprune.io import check_folder, read_json
from hydraprune.paths import RunPaths, StagePaths


@dataclass(frozen=True)
class FolderOptions:
    """A run folder.

    Args:
        target: the run folder; also the first plain argument.
        json: print one JSON object on stdout instead of a table.
    """

    target: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class ModelOptions:
    """The architectures that come with hydraprune.

    Args:
        json: print one JSON object on stdout instead of a table.
    """

    json: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Show what was asked for."""
    {"report": _report, "status": _status, "models": _models}[name](words)
    return 0


def _report(words: Sequence[str]) -> None:
    options = parse(FolderOptions, "hydraprune report", words)
    folder = _folder(options)
    written = reports.write(folder)
    if options.json:
        say(json.dumps({"markdown": str(written.markdown), "html": str(written.html)}))
        return
    Console(file=sys.stdout).print(reports.terminal_table(read_json(RunPaths(folder).results)))
    say(f"report  {written.html}")


def _status(words: Sequence[str]) -> None:
    options = parse(FolderOptions, "hydraprune status", words)
    folder = _folder(options)
    if not RunPaths(folder).stages.is_dir():
        raise UserError(f"'{folder}' is not a run folder: it has no stages; give the --out of a run")
    records = [_stage_record(stage) for stage in pipeline.stage_folders(folder)]
    if options.json:
        say(json.dumps({"folder": str(folder), "stages": records}))
        return
    table = Table("stage", "state", "step", "left", "seconds", "loss", "validation benign / robust")
    for record in records:
        last = record["validation_benign"], record["validation_robust"]
        shown = " / ".join(f"{value:.1%}" for value in last if value is not None)
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f}"
        step = "" if record["step"] is None else f"{record['step']}/{record['steps']}"
        left = "" if record["eta_s"] is None else str(timedelta(seconds=round(record["eta_s"])))
        loss = "" if record["loss"] is None else f"{record['loss']:.3f}"
        table.add_row(record["stage"], record["state"], step, left, seconds, loss, shown)
    Console(file=sys.stdout).print(table)


def _stage_record(stage: StagePaths) -> dict[str, Any]:
    record: dict[str, Any] = {
        "stage": stage.folder.name,
        "state": _state(stage),
        "locked": _locked(stage),
        "epoch": None,
        "step": None,
        "steps": None,
        "eta_s": None,
        "loss": None,
        "epochs": None,
        "seconds": None,
        "validation_benign": None,
        "validation_robust": None,
    }
    if stage.outcome.exists():
        record |= _numbers(read_json(stage.outcome), ("epochs", "seconds"), stage.outcome)
    if told := _log(stage):
        last = _numbers(told[-1], ("epoch", "step", "steps", "loss", "seconds"), stage.log)
        seconds = last.pop("seconds")
        record |= last
        record["seconds"] = record["seconds"] or seconds
        if record["state"] != "finished" and None not in (seconds, last["step"], last["steps"]):
            record["eta_s"] = seconds * (last["steps"] - last["step"]) / max(last["step"], 1)
        validated, source = [each for each in told if each["event"] == "epoch"], stage.log
    else:
        validated, source = _history(stage), stage.history
    for each in validated[-1:]:
        record |= _numbers(each, ("validation_benign", "validation_robust"), source)
    return record


def _log(stage: StagePaths) -> list[dict[str, Any]]:
    try:
        return read_log(stage)
    except OSError as error:
        raise UserError(f"cannot read '{stage.log}': {error.strerror or error}") from None


def _history(stage: StagePaths) -> list[Any]:
    """Return the epochs of a stage, none where it has no history."""
    history = read_json(stage.history) if stage.history.exists() else {"epochs": []}
    if not (isinstance(history, dict) and isinstance(history.get("epochs"), list)):
        raise UserError(f"'{stage.history}' is not the history of a stage: it holds no list of epochs")
    epochs: list[Any] = history["epochs"]
    return epochs


def _numbers(record: Any, keys: Sequence[str], source: Path) -> dict[str, Any]:
    """Return some values of a record, each a finite number or None; `UserError` names the file where one is neither.

    NaN and infinities, which JSON has no words for, are None.
    """
    if not isinstance(record, dict):
        raise UserError(f"'{source}' holds '{record}' where a record of a stage belongs; delete the stage's folder")
    found = {key: record.get(key) for key in keys}
    for key, value in found.items():
        if value is not None and not isinstance(value, int | float):
            raise UserError(f"'{source}' says that {key} is '{value}', not a number; delete the stage's folder")
        if isinstance(value, float) and not math.isfinite(value):
            found[key] = None
    return found


def _state(stage: StagePaths) -> str:
    """Return finished, running, or stopped (with or without a state to go on from)."""
    if stage.outcome.exists():
        return "finished"
    if _locked(stage):
        return "running"
    return "stopped, state saved" if stage.checkpoints() else "stopped"


def _locked(stage: StagePaths) -> bool:
    """Whether a process holds the stage."""
    if not stage.lock.exists():
        return False
    with stage.lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _models(words: Sequence[str]) -> None:
    options = parse(ModelOptions, "hydraprune models", words)
    rows = [_plain(row) for row in models.table()]
    _show_rows(rows, options.json, tuple(rows[0]))


def _plain(value: Any) -> dict[str, Any]:
    assert is_dataclass(value) and not isinstance(value, type)
    return {key: item for key, item in asdict(value).items() if not isinstance(item, Callable)}  # type: ignore[arg-type]


def _show_rows(rows: list[dict[str, Any]], as_json: bool, columns: Sequence[str]) -> None:
    if as_json:
        say(json.dumps(rows, default=str))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*("×".join(map(str, v)) if isinstance(v := row[c], tuple) else f"{v}" for c in columns))
    Console(file=sys.stdout).print(table)


def _folder(options: FolderOptions) -> Path:
    if options.target is None:
        raise UserError("say which run folder is meant")
    check_folder(options.target)
    return options.target
