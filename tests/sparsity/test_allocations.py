"""How many weights each layer keeps: exact counts, and masks equal to those of a full sort."""

import copy
from collections import defaultdict
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydraprune import models
from hydraprune.errors import UserError
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    Allocation,
    Erk,
    Global,
    Hydra,
    IdealGas,
    Lamp,
    Probe,
    Uniform,
    kept_count,
    prunable_weights,
    prune,
)
from hydraprune.sparsity.learned import Rates


def top(values, keep):
    """Indices of the `keep` largest by a full sort, the smaller index first among equals."""
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep])


def global_masks(layers, sparsity, min_kept):
    """One full sort of the network; each layer's own best `min_kept` go before all others."""
    entries = [
        (index not in top(values, min_kept), -values[index], layer, index)
        for layer, values in enumerate(layers)
        for index in range(len(values))
    ]
    kept = {(layer, index) for _, _, layer, index in sorted(entries)[: kept_count(sparsity, len(entries))]}
    return [[(layer, index) in kept for index in range(len(values))] for layer, values in enumerate(layers)]


def erk_shares(shapes, sparsity):
    """density ∝ (sum of dimensions) / (product), capped at 1, in exact arithmetic."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    target = kept_count(sparsity, sum(sizes))
    dense = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in dense]
        rest = target - sum(sizes[i] for i in dense)
        scale = Fraction(rest, sum(sum(shapes[i]) for i in free)) if free else Fraction(0)
        full = {i for i in free if scale * sum(shapes[i]) > sizes[i]}
        if not full:
            return [Fraction(sizes[i]) if i in dense else scale * sum(shapes[i]) for i in range(len(sizes))]
        dense |= full


@st.composite
def networks(draw):
    """Small networks of Conv and Linear; half of them with few different weights, so with many ties."""
    ties = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 6))
        layers.append(draw(st.sampled_from([nn.Conv2d(inputs, outputs, 3), nn.Linear(inputs, outputs)])))
        shape = layers[-1].weight.shape
        values = (
            torch.randint(-2, 3, shape, generator=generator) / 2 if ties else torch.randn(shape, generator=generator)
        )
        layers[-1].weight = nn.Parameter(values)
    return nn.Sequential(*layers), draw(st.integers(0, 99)) / 100


def searched(model, allocation, sparsity):
    """Prune with HYDRA; return importances and masks as lists, layer by layer."""
    masks = prune(model, Hydra(), allocation, sparsity)
    importances = [scores.detach().abs().reshape(-1).tolist() for scores in masks.scores()]
    return importances, [mask.reshape(-1).tolist() for mask in masks.as_dict().values()]


@settings(deadline=None, max_examples=40)
@given(networks())
def test_uniform_masks_are_those_of_a_full_sort_of_each_layer(network):
    importances, masks = searched(network[0], Uniform(), network[1])
    for values, mask in zip(importances, masks, strict=True):
        kept = top(values, kept_count(network[1], len(values)))
        assert mask == [index in kept for index in range(len(values))]


@settings(deadline=None, max_examples=40)
@given(networks(), st.integers(0, 4))
def test_global_masks_are_those_of_a_full_sort_of_the_network(network, min_kept):
    model, sparsity = network
    layers = [module.weight.numel() for module in model]
    if kept_count(sparsity, sum(layers)) < sum(min(min_kept, n) for n in layers):
        with pytest.raises(UserError, match="global allocation keeps alive"):
            prune(model, Hydra(), Global(min_kept), sparsity)
        return
    importances, masks = searched(model, Global(min_kept), sparsity)
    assert masks == global_masks(importances, sparsity, min_kept)
    assert sum(map(sum, masks)) == kept_count(sparsity, sum(layers))
    assert all(sum(mask) >= min(min_kept, len(mask)) for mask in masks)


@settings(deadline=None, max_examples=40)
@given(networks())
def test_erk_masks_are_sorted_and_their_densities_those_of_exact_arithmetic(network):
    model, sparsity = network
    shares = erk_shares([tuple(module.weight.shape) for module in model], sparsity)
    importances, masks = searched(model, Erk(), sparsity)
    assert sum(map(sum, masks)) == kept_count(sparsity, sum(map(len, masks)))
    for values, mask, share in zip(importances, masks, shares, strict=True):
        assert mask == [index in top(values, sum(mask)) for index in range(len(values))]
        assert abs(sum(mask) - share) <= 1


@settings(deadline=None, max_examples=30)
@given(networks(), st.sampled_from(sorted(ALLOCATIONS)))
def test_channels_last_scores_give_the_same_masks(network, name):
    model, sparsity = network
    if kept_count(sparsity, sum(module.weight.numel() for module in model)) < len(model):
        return  # refused by those that let no layer die
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    allocation = Global(min_kept=0) if name == "global" else ALLOCATIONS[name]()
    assert searched(turned, allocation, sparsity)[1] == searched(model, allocation, sparsity)[1]


def counts(allocation, shapes, sparsity):
    importance = {
        str(i): torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)
    }
    return list(allocation.counts(importance, sparsity).values())


def test_uniform_removes_29_of_100():
    assert counts(Uniform(), [(10, 10), (100,)], 0.29) == [71, 71]


def test_erk_by_hand():
    # 1,010 of 10,100 weights over affinities 20 and 200: 1010 / 220 = 4.59, so 91.8 and 918.2.
    assert counts(Erk(), [(10, 10), (100, 100)], 0.9) == [92, 918]
    # Twice as many: 183.6 of the first would be more than it has; it stays dense, the other takes the rest.
    assert counts(Erk(), [(10, 10), (100, 100)], 0.8) == [100, 1920]
    # Kernels count with their sides: (8 + 4 + 3 + 3) : (16 + 2) is 1 : 1.
    assert counts(Erk(), [(8, 4, 3, 3), (16, 32)], 0.9)[0] == round(80 * 18 / (18 + 48))


def test_global_is_one_threshold_for_all_layers():
    importance = {"small": torch.tensor([0.1, 0.2, 0.3]), "large": torch.tensor([1.0, 2.0, 3.0, 0.25, 0.05, 0.01])}
    assert Global(min_kept=0).counts(importance, 0.5) == {"small": 1, "large": 4}
    assert Global(min_kept=0).counts(importance, 0.6) == {"small": 1, "large": 3}
    assert Global(min_kept=0).counts(importance, 0.7) == {"small": 0, "large": 3}
    assert Global(min_kept=1).counts(importance, 0.7) == {"small": 1, "large": 2}
    assert Global(min_kept=2).counts(importance, 0.5) == {"small": 2, "large": 3}


def test_global_keeps_a_layer_alive_by_its_own_best_weights():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 8, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[1e-3, -3e-3], [2e-3, 0.0]]))
    masks = prune(model, CRITERIA["lwm"](), Global(min_kept=2), 0.75)
    assert masks.as_dict()["0.weight"].tolist() == [[False, True], [True, False]]
    assert masks.summary().kept == 5


def test_what_global_cannot_do_is_said_with_numbers():
    with pytest.raises(UserError, match=r"sparsity 0.9 keeps 2 of 12 weights, fewer than the 6 .*\(3 a layer\)"):
        counts(Global(min_kept=3), [(6,), (6,)], 0.9)
    with pytest.raises(UserError, match="min_kept must be at least 0, not -1"):
        Global(min_kept=-1)


@pytest.mark.parametrize("criterion", tuple(CRITERIA))
@pytest.mark.parametrize("allocation", tuple(ALLOCATIONS))
@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.9, 0.98])
def test_every_criterion_and_allocation_keep_exactly_what_was_asked(criterion, allocation, sparsity):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 10)
    )
    images = torch.rand(4, 3, 6, 6)
    probe = Probe(lambda network: iter([network(images).square().mean()]), images[:1])
    kind = CRITERIA[criterion]
    chosen = kind(rounds=3) if kind.rounds > 1 else kind()
    summary = prune(model, chosen, ALLOCATIONS[allocation](), sparsity, probe=probe).summary()
    if allocation == "uniform":
        assert [layer.kept for layer in summary.layers] == [
            kept_count(sparsity, layer.total) for layer in summary.layers
        ]
    else:
        assert summary.kept == kept_count(sparsity, summary.total)
    assert summary.total == 216 + 144 + 320
    assert all(0 < layer.kept <= layer.total for layer in summary.layers)
    actual = [int(model[i].weight.count_nonzero()) for i in (0, 2, 4)]
    assert actual == [layer.kept for layer in summary.layers]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(0, 9999))
def test_erk_counts_are_exact_and_fit_for_any_shapes(shapes, parts):
    sizes = [torch.Size(shape).numel() for shape in shapes]
    importance = {str(i): torch.empty(shape, device="meta") for i, shape in enumerate(shapes)}
    kept = list(Erk().counts(importance, parts / 10000).values())
    assert sum(kept) == kept_count(parts / 10000, sum(sizes))
    assert all(0 <= count <= size for count, size in zip(kept, sizes, strict=True))
    shares = erk_shares(shapes, parts / 10000)
    if all(share >= 1 for share in shares):  # else the smallest are given a weight that others pay
        assert all(abs(count - share) <= 1 for count, share in zip(kept, shares, strict=True))


SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=8)


@settings(deadline=None, max_examples=100)
@given(SIZES, st.integers(0, 9999))
def test_ideal_gas_densities_are_those_of_one_force(sizes, parts):
    """1 / density − 1 is F · n: the same F for every layer, up to the rounding of a count to a whole weight."""
    importance = {str(i): torch.empty(n, device="meta") for i, n in enumerate(sizes)}
    kept = list(IdealGas().counts(importance, parts / 10000).values())
    target = kept_count(parts / 10000, sum(sizes))
    assert sum(kept) == target
    assert all((target < len(sizes) or count >= 1) and count <= n for count, n in zip(kept, sizes, strict=True))
    if all(count > 1 for count in kept) and parts > 0:
        forces = [(1 / (count + 1) - 1 / n, 1 / (count - 1) - 1 / n) for count, n in zip(kept, sizes, strict=True)]
        assert max(low for low, _ in forces) <= min(high for _, high in forces)  # n/k = F n + 1: 1/k − 1/n = F


def test_ideal_gas_by_hand():
    # F with 100 / (100 F + 1) + 1000 / (1000 F + 1) = 110: F = 0.0078…; the small layer keeps more than half.
    kept = counts(IdealGas(), [(100,), (1000,)], 0.9)
    force = 1 / kept[0] - 1 / 100
    assert sum(kept) == 110
    assert kept[1] == pytest.approx(1000 / (1000 * force + 1), abs=2)
    assert kept[0] < kept[1] < 10 * kept[0]


def lamp_by_definition(values):
    """u² / Σ of the squares of all that are not before it, the weights in rising order, later index first.

    The last, the largest, has 1 also where all are 0: no layer dies.
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], -i))
    found = [0.0] * len(values)
    for place, i in enumerate(order):
        rest = sum(values[j] ** 2 for j in order[place:])
        found[i] = values[i] ** 2 / rest if rest else float(place == len(order) - 1)
    return found


def test_lamp_by_hand():
    # (1, 3, 2): 9 of 9, 4 of 13, 1 of 14. (10, 10): the first has 1, the second 1/2. So 3, 10, 10, 2, 1 is the order.
    importance = {"a": torch.tensor([1.0, 3.0, 2.0]), "b": torch.tensor([10.0, 10.0])}
    shares = Lamp().comparable(importance["a"])
    assert shares.tolist() == pytest.approx([1 / 14, 1.0, 4 / 13])
    assert Lamp().comparable(importance["b"]).tolist() == [1.0, 0.5]
    assert [Lamp().counts(importance, s) for s in (0.6, 0.4, 0.2)] == [
        {"a": 1, "b": 1},
        {"a": 1, "b": 2},
        {"a": 2, "b": 2},
    ]


@settings(deadline=None, max_examples=40)
@given(networks())
def test_lamp_masks_are_those_of_the_definition_and_no_layer_dies(network):
    model, sparsity = network
    total = sum(module.weight.numel() for module in model)
    if kept_count(sparsity, total) < len(model):
        return
    importances, masks = searched(model, Lamp(), sparsity)
    for values, mask in zip(importances, masks, strict=True):
        assert mask == [index in top(values, sum(mask)) for index in range(len(values))]
        assert sum(mask) >= 1
    assert sum(map(sum, masks)) == kept_count(sparsity, total)
    exact = [lamp_by_definition([float(v) for v in values]) for values in importances]
    kept = [v for values, mask in zip(exact, masks, strict=True) for v, m in zip(values, mask, strict=True) if m]
    gone = [v for values, mask in zip(exact, masks, strict=True) for v, m in zip(values, mask, strict=True) if not m]
    assert not gone or max(gone) <= min(kept) + 1e-9


@pytest.mark.parametrize("kind", [Global, Lamp])
def test_no_output_dies_where_each_is_promised_a_weight(kind):
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 5))
    with torch.no_grad():
        model[0].weight[2] *= 1e-6
    masks = prune(model, CRITERIA["lwm"](), kind(min_per_output=1), 0.8).as_dict()
    assert all(mask.any(1).all() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == 18
    with pytest.raises(
        UserError, match=r"fewer than the 11 that \w+ allocation keeps alive \(1 a layer, 1 an output\)"
    ):
        prune(nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 5)), CRITERIA["lwm"](), kind(1, 1), 0.9)


@pytest.mark.parametrize("architecture", tuple(models.MODELS))
@pytest.mark.parametrize("allocation", [Uniform(), Erk(), IdealGas(), Rates(defaultdict(lambda: 0.02), exact=True)])
def test_counts_are_exact_on_every_architecture_and_no_layer_dies(architecture, allocation):
    with torch.device("meta"):
        model = models.create(architecture, 10, (3, 64, 64))
    importance = {name: holders[0].weight for name, holders in prunable_weights(model).items()}
    for sparsity in (0.5, 0.9, 0.99, 0.999):
        kept = allocation.counts(importance, sparsity)
        assert all(1 <= kept[name] <= weight.numel() for name, weight in importance.items())
        if not isinstance(allocation, Uniform):
            assert sum(kept.values()) == kept_count(sparsity, sum(w.numel() for w in importance.values()))


@pytest.mark.parametrize("name", tuple(ALLOCATIONS))
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_counts_are_those_of_the_masks(name, sparsity):
    generator = torch.Generator().manual_seed(0)
    importance = {
        "conv": torch.rand(8, 4, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last),
        "linear": 0.001 * torch.rand(5, 8, generator=generator),
    }
    allocation = ALLOCATIONS[name]()
    masks = allocation.masks(importance, sparsity)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == allocation.counts(importance, sparsity)
    assert [mask.dtype for mask in masks.values()] == [torch.bool] * 2


def test_an_allocation_of_ones_own_only_says_counts():
    class Half(Allocation):
        def counts(self, importance, sparsity):
            return {name: tensor.numel() // 2 for name, tensor in importance.items()}

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    masks = prune(model, CRITERIA["lwm"](), Half(), 0.9)
    assert [layer.kept for layer in masks.summary().layers] == [8, 4]
    magnitudes = model[1].parametrizations.weight.original.detach().abs()
    assert torch.equal(masks.as_dict()["1.weight"], magnitudes >= magnitudes.flatten().topk(4).values[-1])
