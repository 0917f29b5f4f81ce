"""Criteria that look at the whole network, by answers computed by hand on f(x) = w2 · w1 x."""

import pytest
import torch
from torch import nn

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.sparsity import (
    CRITERIA,
    Function,
    Global,
    Grasp,
    Hydra,
    Movement,
    OwnFunction,
    Probe,
    Snip,
    SynFlow,
    Taylor,
    Uniform,
    attach,
    prune,
)


def chain(first=((1.0, -2.0),), second=((3.0,),)):
    """f(x) = w2 · (w1 · x) without biases."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor(first))
    model[1].weight = nn.Parameter(torch.tensor(second))
    return model


def probe(*inputs):
    """The loss of each batch is the network's output on one input: linear in each layer."""
    points = [torch.tensor([x]) for x in inputs]
    return Probe(lambda model: (model(x).sum() for x in points), points[0][:1])


def scores(criterion, model, on=None):
    masks = attach(model, criterion, probe=on)
    return [tensor.detach().flatten().tolist() for tensor in masks.scores()]


# f = w2 (w11 x1 + w12 x2): ∂f/∂w1 = w2 x, ∂f/∂w2 = w1 x. With w1 = (1, −2), w2 = 3:
# x = (1, 1): g1 = (3, 3), g2 = −1;  x = (2, −1): g1 = (6, −3), g2 = 4.
POINTS = (1.0, 1.0), (2.0, -1.0)


def test_snip_is_the_gradient_of_the_mean_loss_times_the_weight():
    assert scores(Snip(), chain(), probe(*POINTS)) == [[9.0, 0.0], [9.0]]  # |(3+6)·1|, |(3−3)·(−2)|, |(−1+4)·3|


def test_taylor_squares_before_it_averages_so_that_batches_do_not_cancel():
    assert scores(Taylor(), chain(), probe(*POINTS)) == [[(9 + 36) / 2, (36 + 36) / 2], [(9 + 144) / 2]]


def test_grasp_is_the_weight_times_hessian_times_gradient_with_its_sign():
    # At x = (1, 1): g = (3, 3, −1), H has ∂²f/∂w1∂w2 = x = 1 and nothing else, so Hg = (−1, −1, 3 + 3).
    found = scores(Grasp(), chain(), probe(POINTS[0]))
    assert found == [[-1.0, 2.0], [18.0]]  # θ ⊙ Hg with θ = (1, −2, 3)


def test_grasp_uses_the_mean_gradient_over_batches():
    # g = mean of (3, 3, −1) and (6, −3, 4) = (4.5, 0, 1.5); H = mean of x = (1.5, 0): Hg = (1.5·1.5, 0, 1.5·4.5).
    assert scores(Grasp(), chain(), probe(*POINTS)) == [[2.25, 0.0], [20.25]]


def test_grasp_keeps_the_largest_and_not_the_largest_in_magnitude():
    model = chain(first=((-5.0, 1.0),))  # g = (3, 3, −4), Hg = (−4, −4, 6): θ ⊙ Hg = (20, −4, 18)
    masks = prune(model, Grasp(), Uniform(), 0.5, probe=probe((1.0, 1.0)))
    assert masks.as_dict()["0.weight"].tolist() == [[True, False]]
    model = chain(first=((5.0, 1.0),))  # g = (3, 3, 6), Hg = (6, 6, 6): (30, 6): both add to the gradient
    masks = prune(model, Grasp(), Uniform(), 0.5, probe=probe((1.0, 1.0)))
    assert masks.as_dict()["0.weight"].tolist() == [[True, False]]
    model = chain(first=((1.0, 0.1),), second=((-3.0,),))
    signed = attach(model, Grasp(), probe=probe((-9.0, 1.0)))  # g = (27, −3, −8.9), Hg = (80.1, −8.9, −246)
    assert next(t.flatten().tolist() for t in signed.scores()) == pytest.approx([80.1, -0.89])


def test_synflow_is_the_flow_through_each_weight_and_knows_no_sign():
    # R = |w2| (|w11| + |w12|) = 9; the flow through w11 is 3 · 1, through w12 3 · 2, through w2 all 9, the largest.
    found = scores(SynFlow(rounds=1), chain(), probe((0.0, 0.0)))
    assert found == [pytest.approx([3 / 9, 6 / 9]), [1.0]]


def test_synflow_in_rounds_never_cuts_the_only_path():
    """One-shot magnitude empties the thin layer at 2 of 5 weights; flow sees that all of it passes there."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[4.0, 5.0, 6.0, 7.0]]))
    model[1].weight = nn.Parameter(torch.tensor([[0.001]]))
    masks = prune(model, SynFlow(rounds=20), Global(min_kept=0), 0.6, probe=probe((0.0,) * 4)).as_dict()
    assert masks["1.weight"].tolist() == [[True]]
    assert masks["0.weight"].tolist() == [[False, False, False, True]]


def test_synflow_holds_flows_that_a_float32_cannot():
    """The flows are 1e60, 2e60 and 3e60; means of channels do not overflow either."""
    large = chain(first=((1e30, -2e30),), second=((1e30,),))
    assert scores(SynFlow(rounds=1), large, probe((0.0, 0.0))) == [pytest.approx([1 / 3, 2 / 3]), [1.0]]


def test_flows_that_vanish_beside_the_largest_tie_at_nothing():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[1e-30, 2e-30], [3.0, 1.0]]))
    model[1].weight = nn.Parameter(torch.tensor([[1e-30, 1.0]]))
    assert scores(SynFlow(rounds=1), model, probe((0.0, 0.0))) == [[0.0, 0.0, 0.75, 0.25], [0.0, 1.0]]
    cut = scores(SynFlow(rounds=1), chain(second=((0.0,),)), probe((0.0, 0.0)))
    assert cut == [[0.0, 0.0], [0.0]]  # where nothing flows there is no largest


def test_synflow_reports_a_flow_that_a_float64_cannot_hold():
    large = chain(first=((1e200, 1e200),), second=((1e200,),)).double()
    large[0].weight = nn.Parameter(torch.tensor([[1e200, 1e200]], dtype=torch.float64))
    large[1].weight = nn.Parameter(torch.tensor([[1e200]], dtype=torch.float64))
    with pytest.raises(HydrapruneError, match=r"'0.weight' leaves the range of float64"):
        scores(SynFlow(rounds=1), large, probe((0.0, 0.0)))


@pytest.mark.parametrize("name", ["snip", "taylor", "synflow"])
def test_less_than_one_round_of_scoring_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=f"^{name}: rounds must be at least 1, got 0$"):
        CRITERIA[name](rounds=0)


def test_movement_scores_add_up_minus_gradient_times_weight_and_weights_learn_too():
    model = chain()
    before = model[0].weight
    masks = prune(model, Movement(), Uniform(), 0.0)
    assert model[0].parametrizations.weight.original is before  # what the pipeline hands to the optimiser
    optimiser = torch.optim.SGD([*masks.scores(), before], lr=0.1)
    start = masks.scores()[0].detach().clone()
    model(torch.tensor([[1.0, 1.0]])).sum().backward()  # ∂f/∂w1 = (3, 3)
    optimiser.step()
    assert (masks.scores()[0] - start).tolist() == [pytest.approx([-0.3, 0.6])]  # −0.1 · 3 · 1, −0.1 · 3 · (−2)
    assert before.tolist() == [pytest.approx([0.7, -2.3])]
    masks.allocate(Uniform(), 0.5)
    assert masks.as_dict()["0.weight"].tolist() == [[False, True]]  # the weight that moves away from zero stays


def test_hydras_magnitude_start_is_the_mask_of_lwm_under_every_allocation():
    torch.manual_seed(0)
    for allocation in (Uniform(), Global()):
        one, other = (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 40)) for _ in range(2))
        other.load_state_dict(one.state_dict())
        found = prune(one, Hydra(init="magnitude"), allocation, 0.7).as_dict()
        expected = prune(other, CRITERIA["lwm"](), allocation, 0.7).as_dict()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_function_of_ones_own_scores_by_name_or_as_it_is():
    weight = torch.tensor([[1.0, -3.0]])
    generator = torch.Generator()
    assert Function("torch:square").scores(weight, generator).tolist() == [[1.0, 9.0]]
    assert OwnFunction(lambda w: w + 1, "plus").scores(weight, generator).tolist() == [[2.0, -2.0]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch", "does not name a function; write package.module:function"),
        ("torch:nothing_there", "'torch:nothing_there' cannot be found"),
        ("nowhere_at_all:f", "'nowhere_at_all:f' cannot be found"),
        ("torch:pi", "'torch:pi' is float, not a function"),
        ("torch:sum", r"'torch:sum' returned shape \(\) for a weight of shape \(1, 2\)"),
        ("builtins:len", "'builtins:len' returned int for a weight"),
        ("torch:log", "returned shape"),
        ("torch:linalg.inv", "cannot be found"),
    ],
)
def test_a_function_that_does_not_score_is_named_in_one_line(target, message):
    with pytest.raises(UserError, match=message):
        Function(target).scores(torch.tensor([[1.0, -3.0]]), torch.Generator())


@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].needs_probe])
def test_without_an_objective_they_say_what_is_missing_and_change_nothing(name):
    model = chain()
    with pytest.raises(UserError, match=r"needs .*: give an objective and data"):
        prune(model, CRITERIA[name](), Uniform(), 0.5)
    with pytest.raises(UserError, match="whole network"):
        CRITERIA[name]().scores(model[0].weight, torch.Generator())
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].needs_probe])
def test_the_network_is_as_it_was_after_scoring(name, user_network):
    """Running statistics, modes, frozen weights and gradients are the user's."""
    model = user_network().train()
    model.norm.eval()
    model.hidden.weight.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = torch.rand(4, 1, 4, 4)
    on = Probe(lambda network: iter([network(images).square().mean()]), images[:1])
    rounds = {"rounds": 3} if name != "grasp" else {}
    criterion = CRITERIA[name](**rounds)
    masks = prune(model, criterion, Global(), 0.5, probe=on)
    after = {key.replace(".parametrizations.weight.original", ".weight"): t for key, t in model.state_dict().items()}
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert model.training
    assert not model.norm.training
    assert not model.hidden.parametrizations.weight.original.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert masks.summary().kept == 572 // 2
    assert all(scores.detach().count_nonzero() > 0 for scores in masks.scores())
