"""The claim itself, on real images: at 99 % HYDRA keeps more robustness than LWM, and LWM more than random."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from hydraprune.pipeline import compare, load

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"


@pytest.mark.slow
def test_hydra_keeps_more_than_lwm_and_lwm_more_than_random_at_99_percent(tmp_path):
    recipe = load(RECIPE)
    protocol = replace(recipe.evaluation.protocol, restarts=1)
    grid = replace(recipe.compare, sparsities=(0.99,), seeds=(0, 1, 2))
    measured = replace(recipe.evaluation, protocol=protocol, validation_steps=0)
    rows = compare(replace(recipe, evaluation=measured, compare=grid), tmp_path, jobs="auto").rows

    def robust(criterion: str | None, allocation: str | None) -> float:
        chosen = [row for row in rows if (row["criterion"], row["allocation"]) == (criterion, allocation)]
        assert len(chosen) == 3
        return mean(row["robust_accuracy"] for row in chosen)

    assert robust(None, None) > 0.83
    assert robust("hydra", "global") > 0.75
    assert robust("hydra", "global") > robust("lwm", "global") + 0.05
    assert robust("hydra", "uniform") > robust("lwm", "uniform") + 0.03
    for allocation in ("uniform", "global"):
        assert robust("lwm", allocation) > robust("random", allocation) + 0.10
