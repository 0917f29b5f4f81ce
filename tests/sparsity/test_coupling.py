"""Dependency groups: what skip connections add up is pruned together."""

import pytest
import torch
from torch import nn

from hydraprune import models
from hydraprune.errors import UserError
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    Channels,
    Erk,
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


class HeadFirst(nn.Module):
    """A module that lists its classifier first."""

    def __init__(self, end=None):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Linear(25, 6)
        self.end = end or nn.Identity()

    def forward(self, x):
        return self.end(self.head(self.body(x.flatten(1)).relu()))


class AddedUp(nn.Module):
    """A skip that ends at the network's output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        return (x + self.outer(self.inner(x))).mean((2, 3))


class Fetched(HeadFirst):
    """A classifier whose weight another operation takes."""

    def forward(self, x):
        return nn.functional.linear(self.body(x.flatten(1)).relu(), self.head.weight)


def masked(model, **options):
    return list(prune(model, LeastWeightMagnitude(), Uniform(), 0.5, pattern=Channels(), **options).as_dict())


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize(
    ("make", "inner"),
    [
        (HeadFirst, ["body.weight"]),
        (lambda: HeadFirst(nn.LogSoftmax(1)), ["body.weight"]),
        (Fetched, ["body.weight"]),
        (AddedUp, ["inner.weight"]),
        (Residual, ["stem.weight", "inner.weight", "outer.weight"]),
    ],
    ids=["head first", "softmax", "fetched", "skip to the output", "residual"],
)
def test_the_layers_whose_outputs_are_the_networks_stay_dense(make, inner, coupled):
    masks = prune(make(), LeastWeightMagnitude(), Uniform(), 0.5, pattern=Channels(coupled), image=IMAGE)
    assert list(masks.as_dict()) == inner


@pytest.mark.parametrize("image", [IMAGE, None])
def test_a_classifier_that_is_excluded_leaves_no_other_layer_dense(image):
    assert masked(Residual(), exclude=["last.*"], image=image) == ["stem.weight", "inner.weight", "outer.weight"]
    assert masked(Residual(), include=["inner.*", "outer.*"], image=image) == ["inner.weight", "outer.weight"]


def test_without_a_graph_the_last_layer_of_the_module_stays_dense():
    assert masked(HeadFirst()) == ["head.weight"]
    with pytest.raises(UserError, match=r"the outputs of last\.weight are the network's"):
        masked(Residual(), include=["last.*"])


def test_coupled_channels_have_the_density_of_all_their_weights_under_erk():
    # Sums of dimensions over products: stem and outer (4+1+3+3 + 4+4+3+3) / (36 + 144) = 25/180, inner 14/144.
    # Of 4 channels each, 4 stay: shares 4 · 0.1389 / 0.2361 = 2.35 and 1.65.
    masks = prune(Residual(), LeastWeightMagnitude(), Erk(), 0.5, pattern=Channels(), image=IMAGE)
    assert {name: sum(mask) for name, mask in kept(masks).items()} == {
        "stem.weight": 2,
        "inner.weight": 2,
        "outer.weight": 2,
    }
    masks = prune(Residual(), LeastWeightMagnitude(), Erk(), 0.3, pattern=Channels(), image=IMAGE)
    assert {name: sum(mask) for name, mask in kept(masks).items()} == {  # of 6: 3.53 and 2.47
        "stem.weight": 4,
        "inner.weight": 2,
        "outer.weight": 4,
    }
