"""Every file name of a run, in one place.

OUT/
  recipe.yaml         the recipe as it was run, every default written out
  results.json        one row for each network evaluated
  report.md, report.html, inspection.html
  artefacts/          compact networks, one file each
  stages/KIND-HASH/   one folder for each stage; HASH is the content hash of all that determines it
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StagePaths:
    """The files of one stage, all inside `folder`."""

    folder: Path

    @property
    def description(self) -> Path:
        """What determines the stage: the value whose hash names the folder."""
        return self.folder / "stage.json"

    @property
    def lock(self) -> Path:
        """Held by the process that makes the stage."""
        return self.folder / "lock"

    @property
    def checkpoint(self) -> Path:
        """The newest state of a stage that is not finished yet."""
        return self.folder / "checkpoint.pt"

    @property
    def checkpoint_before(self) -> Path:
        """The state before the newest, for when that is damaged."""
        return self.folder / "checkpoint.before.pt"

    def checkpoint_of(self, rank: int, size: int) -> Path:
        """The state of an evaluation that is not finished yet, in one of `size` processes."""
        return self.checkpoint if size == 1 else self.folder / f"checkpoint.{rank}of{size}.pt"

    def checkpoints(self) -> list[Path]:
        """All states that are there, the newest last: whoever is killed deleting them leaves that."""
        return sorted(self.folder.glob("checkpoint*.pt"))

    @property
    def model(self) -> Path:
        """The state dict that a training stage ends with: parameters, buffers, scores and masks."""
        return self.folder / "model.safetensors"

    @property
    def history(self) -> Path:
        """One record for each epoch."""
        return self.folder / "history.json"

    @property
    def log(self) -> Path:
        """What a training stage says of itself while it runs: a JSON object in each line."""
        return self.folder / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard, where that was asked for."""
        return self.folder / "tensorboard"

    @property
    def histogram(self) -> Path:
        """Histograms of the weights that a prune stage kept and removed."""
        return self.folder / "histogram.json"

    @property
    def adversarial(self) -> Path:
        """A few adversarial examples beside their clean images, from an evaluate stage."""
        return self.folder / "adversarial.safetensors"

    @property
    def verdicts(self) -> Path:
        """Which test images an evaluate stage found right, and robust."""
        return self.folder / "verdicts.safetensors"

    @property
    def outcome(self) -> Path:
        """Written last: a stage with this file is finished and never run again."""
        return self.folder / "outcome.json"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run folder."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was run."""
        return self.folder / "recipe.yaml"

    @property
    def results(self) -> Path:
        """One row for each network evaluated, and where the numbers come from."""
        return self.folder / "results.json"

    @property
    def report_markdown(self) -> Path:
        """The report as Markdown."""
        return self.folder / "report.md"

    @property
    def report_html(self) -> Path:
        """The report as one self-contained page."""
        return self.folder / "report.html"

    @property
    def inspection_html(self) -> Path:
        """Which weights were kept, as one self-contained page."""
        return self.folder / "inspection.html"

    @property
    def artefacts(self) -> Path:
        """Compact networks."""
        return self.folder / "artefacts"

    @property
    def stages(self) -> Path:
        """The folder of all stages."""
        return self.folder / "stages"

    def stage(self, kind: str, key: str) -> StagePaths:
        """Return the paths of one stage."""
        return StagePaths(self.stages / f"{kind}-{key}")
