"""How sparsity rises over a stage, and how masks move while weights are fine-tuned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hydraprune.errors import UserError
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    SPARSITY_SCHEDULES,
    Blocks,
    Channels,
    Cubic,
    Fixed,
    Global,
    Hydra,
    Lamp,
    Movement,
    NofM,
    RigL,
    Steps,
    Uniform,
    Weights,
    attach_fixed,
    kept_count,
    prune,
)
from hydraprune.sparsity.regrowth import exchanged


def test_cubic_by_hand():
    schedule = Cubic(begin=0.2, end=0.7)
    assert [schedule.sparsity(0.8, p) for p in (0.0, 0.2, 0.45, 0.7, 1.0)] == pytest.approx([0, 0, 0.7, 0.8, 0.8])


@pytest.mark.parametrize("schedule", [Cubic(), Steps()])
@pytest.mark.parametrize("pattern", [Weights(), Blocks()])
def test_a_sparsity_that_cannot_be_had_in_the_end_is_refused_before_the_search(schedule, pattern):
    network = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(UserError, match="allocation keeps alive"):
        prune(network, Hydra(), Global(min_kept=8), 0.95, pattern=pattern, schedule=schedule)


def test_steps_remove_the_same_share_of_what_is_left_in_every_round():
    schedule = Steps(rounds=2)
    assert [schedule.sparsity(0.99, p) for p in (0.0, 0.49, 0.5, 0.99, 1.0)] == pytest.approx([0, 0, 0.9, 0.9, 0.99])
    assert not schedule.rewinds(0.5, 0.4)
    assert [Steps(2, rewind=True).rewinds(*at) for at in ((0.5, 0.4), (0.6, 0.5), (1.0, 0.9))] == [True, False, True]


@given(st.sampled_from(sorted(SPARSITY_SCHEDULES)), st.integers(0, 99), st.integers(0, 100), st.integers(0, 100))
def test_every_schedule_rises_and_ends_at_exactly_what_was_asked(name, parts, one, other):
    schedule, final = SPARSITY_SCHEDULES[name](), parts / 100
    low, high = sorted((one / 100, other / 100))
    assert 0 <= schedule.sparsity(final, low) <= schedule.sparsity(final, high) <= final
    assert schedule.sparsity(final, 1.0) == final


@pytest.mark.parametrize("wrong", [{"begin": 0.5, "end": 0.5}, {"begin": -0.1}, {"end": 1.5}])
def test_a_cubic_that_does_not_rise_is_refused(wrong):
    with pytest.raises(UserError, match="0 <= begin < end <= 1"):
        Cubic(**wrong)


def model_and_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10, bias=False))
    return model, model[0].weight


def test_masks_of_magnitude_follow_the_weights_while_the_sparsity_rises():
    model, weight = model_and_weight()
    masks = prune(model, CRITERIA["lwm"](), Uniform(), 0.9, schedule=Cubic(end=1.0))
    assert masks.summary().kept == 100
    with torch.no_grad():
        weight.copy_(torch.arange(100.0).view(10, 10) - 10)
    masks.update(1.0)
    assert masks.as_dict()["0.weight"].flatten().nonzero().flatten().tolist() == list(range(90, 100))


def test_weights_go_back_to_the_beginning_after_every_round_and_masks_stay():
    model, weight = model_and_weight()
    start = weight.detach().clone()
    masks = prune(model, CRITERIA["lwm"](), Uniform(), 0.91, schedule=Steps(2, rewind=True))
    with torch.no_grad():
        weight.copy_(torch.arange(100.0).view(10, 10))
    masks.update(0.4, 0.3)
    assert masks.summary().kept == 100
    assert not torch.equal(weight, start)
    masks.update(0.5, 0.4)
    assert torch.equal(weight, start)
    assert masks.as_dict()["0.weight"].flatten()[70:].all()  # (1 − 0.91)^(1/2) = 0.3 of 100
    assert masks.summary().kept == 30


def places(masks):
    return masks.as_dict()["0.weight"].flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("rewind", [True, False])
def test_within_a_round_masks_rest_and_each_round_chooses_among_what_is_left(rewind):
    model, weight = model_and_weight()
    masks = prune(model, CRITERIA["lwm"](), Uniform(), 0.91, schedule=Steps(2, rewind=rewind))
    with torch.no_grad():
        weight.copy_(torch.arange(100.0).view(10, 10))
    masks.update(0.5, 0.4)
    masks.update(0.6, 0.5)  # of weights that were set back, where they are
    assert places(masks) == list(range(70, 100))
    with torch.no_grad():
        weight.copy_(100.0 - torch.arange(100.0).view(10, 10))  # what was removed would be the largest now
    for before in (0.6, 0.7, 0.8):
        masks.update(before + 0.1, before)
        assert places(masks) == list(range(70, 100))
    masks.update(1.0, 0.9)
    assert places(masks) == list(range(70, 79))


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 12), nn.Linear(12, 4))


@pytest.mark.parametrize("pattern", [Weights(), NofM(2, 4), Blocks(1, 4), Channels()], ids=str)
@pytest.mark.parametrize("allocation", [*(ALLOCATIONS[name]() for name in ALLOCATIONS), Global(0, 1)], ids=str)
@pytest.mark.parametrize("criterion", [CRITERIA["lwm"](), Hydra(), Movement()], ids=["lwm", "hydra", "movement"])
def test_whatever_learns_in_rounds_removed_stays_removed_and_counts_are_exact(pattern, allocation, criterion):
    """Weights, scores and rates take any values between the updates, as far as masks are concerned."""
    generator = torch.Generator().manual_seed(0)
    schedule = Steps(3)
    model, image = small_network(), torch.zeros(1, 4, 6, 6)
    masks = prune(model, criterion, allocation, 0.9, pattern=pattern, schedule=schedule, image=image)
    before, kept = 0.0, {name: mask.clone() for name, mask in masks.as_dict().items()}
    sizes = [pattern.counted(torch.ones_like(mask)) for mask in kept.values()]
    for step in range(1, 13):
        with torch.no_grad():
            for parameter in (*model.parameters(), *masks.rates()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        masks.update(before)  # as for an average, or perturbed scores
        assert all(torch.equal(mask, kept[name]) for name, mask in masks.as_dict().items())
        masks.update(step / 12, before)
        masks.update(step / 12, before)  # as for a second loss of the batch
        assert all(not (mask & ~kept[name]).any() for name, mask in masks.as_dict().items())
        assert (step % 4 > 0) == all(torch.equal(mask, kept[name]) for name, mask in masks.as_dict().items())
        before, kept = step / 12, {name: mask.clone() for name, mask in masks.as_dict().items()}
        asked = max(schedule.sparsity(0.9, before), pattern.least_sparsity)
        count = sum(pattern.counted(mask) for mask in kept.values())
        if allocation == Uniform():
            assert count == sum(kept_count(asked, size) for size in sizes)
        else:
            assert count == kept_count(asked, sum(sizes))


def test_rounds_go_on_from_stored_masks_as_if_never_stopped():
    def updated(model, masks, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
            masks.update((step + 1) / 12, step / 12)

    def made():
        model = small_network()
        return model, prune(model, CRITERIA["lwm"](), Lamp(), 0.9, schedule=Steps(3, rewind=True))

    (whole, masks), (model, halfway), (other, again) = made(), made(), made()
    updated(whole, masks, range(12))
    updated(model, halfway, range(6))
    other.load_state_dict(model.state_dict())
    updated(other, again, range(6, 12))
    found = other.state_dict()
    assert [name for name, tensor in whole.state_dict().items() if not torch.equal(tensor, found[name])] == []


def test_rounds_without_an_epoch_remove_all_at_once():
    masks = prune(small_network(), CRITERIA["lwm"](), Global(), 0.9, schedule=Steps(3))
    masks.update()
    expected = prune(small_network(), CRITERIA["lwm"](), Global(), 0.9).as_dict()
    assert all(torch.equal(mask, expected[name]) for name, mask in masks.as_dict().items())


def test_hydras_scores_are_not_overwritten_by_the_weights():
    model, weight = model_and_weight()
    masks = prune(model, Hydra(), Uniform(), 0.9, schedule=Cubic())
    before = masks.scores()[0].detach().clone()
    with torch.no_grad():
        weight.zero_()
    masks.update(1.0)
    assert torch.equal(masks.scores()[0], before)
    assert masks.summary().kept == 10


def test_a_pattern_holds_from_the_first_step_of_a_gradual_schedule():
    masks = prune(model_and_weight()[0], CRITERIA["lwm"](), Uniform(), 0.9, schedule=Cubic(), pattern=NofM(2, 5))
    assert masks.summary().kept == 40


def test_an_exchange_by_hand():
    mask = torch.tensor([True, True, True, True, False, False, False])
    weight = torch.tensor([4.0, -1.0, 2.0, 3.0, 9.0, 9.0, 9.0])
    gradient = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, -5.0, 2.0])
    assert exchanged(mask, weight, gradient, 0.5).int().tolist() == [1, 0, 0, 1, 0, 1, 1]
    gradient[1] = 8.0  # what was just dropped may come back
    assert exchanged(mask, weight, gradient, 0.25).int().tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert exchanged(mask, weight, gradient, 0.2).tolist() == mask.tolist()  # 0.8 of a weight is none


def test_an_exchange_takes_no_more_than_there_is_to_grow():
    mask = torch.tensor([True, True, True, False])
    chosen = exchanged(mask, torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.ones(4), 1.0)
    assert chosen.sum() == 3


def test_rigl_by_hand():
    rigl = RigL(alpha=0.4, every=2.0, until=0.5)
    shares = [rigl.share(step, 80, 10) for step in (10, 20, 30, 40, 60)]
    assert shares == pytest.approx([0, 0.2, 0, 0, 0])  # 0.4/2 · (1 + cos(π/2)) at 20 of 40
    with pytest.raises(UserError, match="alpha and until must be in"):
        RigL(alpha=0.0)


def test_regrown_weights_start_at_zero_and_every_layer_keeps_its_count():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    weight = model[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, -5.0], [7.0, 8.0]]))
    masks = attach_fixed(model, {"0.weight": torch.tensor([[True, True], [False, False]])})
    masks.let_regrow(RigL(alpha=1.0, every=0.1, until=1.0))
    optimiser = torch.optim.SGD([weight], lr=0.0)
    x, c = torch.tensor([[3.0, 2.0]]), torch.tensor([[1.0, 10.0]])
    with masks.cached():
        (model(x) * c).sum().backward()  # dense gradient [[3, 2], [30, 20]]
    optimiser.step()
    assert weight.grad.tolist() == [[3.0, 2.0], [0.0, 0.0]]
    masks.regrow(1, 2, 10)  # share 1/2 · (1 + cos(π/2)) = 0.5: one of two
    assert masks.as_dict()["0.weight"].tolist() == [[False, True], [True, False]]
    assert weight.tolist() == [[0.0, -5.0], [0.0, 0.0]]
    assert model[0].weight.tolist() == [[0.0, -5.0], [0.0, 0.0]]


def test_a_regrowth_looks_at_the_sum_over_all_passes_and_all_holders_of_a_weight():
    """∂L/∂(θ⊙m) is c xᵀ of each pass: 1 · 3 and 1 · 2, 10 · 3 and 10 · 2; then of a layer used under two names."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    masks = attach_fixed(model, {"0.weight": torch.ones(2, 2, dtype=torch.bool)})
    masks.let_regrow(RigL())
    layer = next(module for module in model.modules() if hasattr(module, "gradient"))
    x, c = torch.tensor([[3.0, 2.0]]), torch.tensor([[1.0, 10.0]])
    for part in (0.25, 0.75):
        with masks.cached():
            (model(x) * c).sum().mul(part).backward()
    assert layer.gradient.tolist() == [[3.0, 2.0], [30.0, 20.0]]
    masks.forget_gradients()
    assert layer.gradient is None
    tied = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    tied[0].weight = tied[1].weight = nn.Parameter(torch.tensor([[5.0]]))
    masks = attach_fixed(tied, {"0.weight": torch.ones(1, 1, dtype=torch.bool)})
    masks.let_regrow(RigL())
    with masks.cached():
        tied(torch.tensor([[3.0]])).sum().backward()  # θ² x: 2 · 5 · 3
    assert next(module for module in tied.modules() if hasattr(module, "gradient")).gradient.tolist() == [[30.0]]


def test_without_regrowth_no_gradient_is_kept_and_masks_are_constants():
    model, _ = model_and_weight()
    masks = prune(model, CRITERIA["lwm"](), Global(), 0.5)
    masks.fix()
    masks.let_regrow(Fixed())
    before = masks.as_dict()["0.weight"].clone()
    model(torch.ones(1, 10)).sum().backward()
    masks.regrow(10, 10, 1)
    assert torch.equal(masks.as_dict()["0.weight"], before)
    assert next(module for module in model.modules() if hasattr(module, "gradient")).gradient is None
