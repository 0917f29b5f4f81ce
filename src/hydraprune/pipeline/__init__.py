"""The pipeline: recipes, stages in folders named by content, runs and comparisons."""

from hydraprune.pipeline.any_module import prune
from hydraprune.pipeline.card import EvaluatedNetwork, evaluated_network
from hydraprune.pipeline.import_checkpoint import Imported, import_checkpoint
from hydraprune.pipeline.inspection import Inspection, LayerInspection, inspect
from hydraprune.pipeline.labels import split as split_labels
from hydraprune.pipeline.parser_words import one_line
from hydraprune.pipeline.portable import portable_description
from hydraprune.pipeline.project import Project, open_project
from hydraprune.pipeline.recipe import (
    LARGEST_SEED,
    Certification,
    Comparison,
    Data,
    Evaluation,
    Model,
    Pruning,
    Recipe,
)
from hydraprune.pipeline.recipe_file import (
    as_dict,
    from_arguments,
    load,
    recipe_parser,
    split_arguments,
    to_yaml,
)
from hydraprune.pipeline.results import read_results, stage_folders
from hydraprune.pipeline.runs import RunResult, compare, make_stage, run
from hydraprune.pipeline.target import Target, open_target
from hydraprune.pipeline.zoo_entry import add_to_zoo

__all__ = [
    "LARGEST_SEED",
    "Certification",
    "Comparison",
    "Data",
    "EvaluatedNetwork",
    "Evaluation",
    "Imported",
    "Inspection",
    "LayerInspection",
    "Model",
    "Project",
    "Pruning",
    "Recipe",
    "RunResult",
    "Target",
    "add_to_zoo",
    "as_dict",
    "compare",
    "evaluated_network",
    "from_arguments",
    "import_checkpoint",
    "inspect",
    "load",
    "make_stage",
    "one_line",
    "open_project",
    "open_target",
    "portable_description",
    "prune",
    "read_results",
    "recipe_parser",
    "run",
    "split_arguments",
    "split_labels",
    "stage_folders",
    "to_yaml",
]
