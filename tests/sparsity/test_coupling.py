"""Dependency groups: what skip connections add up is pruned together."""

import pytest
import torch
from torch import nn

from hydraprune import models
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    Channels,
    Global,
    LeastWeightMagnitude,
    Uniform,
    kept_count,
    prune,
)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.outer = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.last((x + self.outer(self.inner(x).relu())).mean((2, 3)))


IMAGE = torch.zeros(1, 1, 5, 5)


def kept(masks):
    return {name: mask.flatten(1).any(1).tolist() for name, mask in masks.as_dict().items()}


def with_magnitudes(**magnitudes):
    model = Residual()
    with torch.no_grad():
        for name, values in magnitudes.items():
            model.get_submodule(name).weight.copy_(torch.tensor(values).view(4, 1, 1, 1))
    return model


def test_added_channels_go_together_by_the_mean_of_their_importances():
    magnitudes = {"stem": [4.0, 1.0, 3.0, 0.0], "inner": [1.0, 2.0, 3.0, 4.0], "outer": [0.0, 5.0, 0.5, 4.5]}
    masks = prune(
        with_magnitudes(**magnitudes), LeastWeightMagnitude(), Uniform(), 0.5, pattern=Channels(), image=IMAGE
    )
    # Means of stem and outer: 2, 3, 1.75, 2.25.
    together = [False, True, False, True]
    assert kept(masks) == {
        "stem.weight": together,
        "inner.weight": [False, False, True, True],
        "outer.weight": together,
    }


@pytest.mark.parametrize(("pattern", "image"), [(Channels(coupled=False), IMAGE), (Channels(), None)])
def test_layers_choose_for_themselves_where_that_is_asked_or_nothing_is_known(pattern, image):
    model = with_magnitudes(stem=[4.0, 1.0, 3.0, 0.0], outer=[0.0, 5.0, 0.5, 4.5])
    masks = prune(model, LeastWeightMagnitude(), Uniform(), 0.5, pattern=pattern, image=image)
    assert kept(masks)["stem.weight"] == [True, False, True, False]
    assert kept(masks)["outer.weight"] == [False, True, False, True]


@pytest.mark.parametrize("allocation", list(ALLOCATIONS))
@pytest.mark.parametrize("sparsity", [0.3, 0.75])
def test_counts_are_exact_in_coupled_channels_under_every_allocation(allocation, sparsity):
    torch.manual_seed(0)
    shape = models.MODELS["wrn_16_1"].usual_shape
    model = models.create("wrn_16_1", 10, shape)
    masks = prune(
        model,
        CRITERIA["hydra"](),
        ALLOCATIONS[allocation](),
        sparsity,
        pattern=Channels(),
        image=torch.zeros(1, *shape),
    )
    masks.update(1.0)
    found = kept(masks)
    added = {  # of each stage what its skips add up
        stage: [name for name in found if f"stage{stage}." in name and ("conv2" in name or "shortcut" in name)]
        for stage in (1, 2, 3)
    }
    added[1].append(next(name for name in found if "stage" not in name))
    groups = list(added.values()) + [[n] for n in found if not any(n in g for g in added.values())]
    assert [len(names) for names in groups[:3]] == [3, 3, 3]
    assert all(found[name] == found[names[0]] for names in groups for name in names)
    total = [len(found[names[0]]) for names in groups]
    if allocation == "uniform":
        assert [sum(found[names[0]]) for names in groups] == [kept_count(sparsity, size) for size in total]
    else:
        assert sum(sum(found[names[0]]) for names in groups) == kept_count(sparsity, sum(total))


def test_the_shuffled_control_keeps_groups_together():
    torch.manual_seed(0)
    model = Residual()
    masks = prune(model, LeastWeightMagnitude(), Global(), 0.5, pattern=Channels(), image=IMAGE)
    before = {name: sum(mask) for name, mask in kept(masks).items()}
    seen = set()
    for seed in range(5):
        masks.shuffle(seed)
        found = kept(masks)
        assert {name: sum(mask) for name, mask in found.items()} == before
        assert found["stem.weight"] == found["outer.weight"]
        seen.add(tuple(found["inner.weight"]))
    assert len(seen) > 1
