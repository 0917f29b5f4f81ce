"""How sparsity rises over a stage, and how masks move while weights are fine-tuned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hydraprune.errors import UserError
from hydraprune.sparsity import (
    CRITERIA,
    SPARSITY_SCHEDULES,
    Cubic,
    Fixed,
    Global,
    Hydra,
    NofM,
    RigL,
    Steps,
    Uniform,
    attach_fixed,
    prune,
)
from hydraprune.sparsity.regrowth import exchanged


def test_cubic_by_hand():
    schedule = Cubic(begin=0.2, end=0.7)
    assert [schedule.sparsity(0.8, p) for p in (0.0, 0.2, 0.45, 0.7, 1.0)] == pytest.approx([0, 0, 0.7, 0.8, 0.8])


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
