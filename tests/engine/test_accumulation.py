"""A batch in parts makes the update of the whole batch, for every objective whose loss is a mean over images."""

import pytest
import torch
from torch import nn

from hydraprune.attacks import PGD
from hydraprune.engine import AWP, SGD, Constant, Training
from hydraprune.objectives import PGDAT, Benign, Free, Trades
from hydraprune.sparsity import Global, Hydra, prune

PLAIN = PGD(steps=2, random_start=False)
OBJECTIVES = {
    "benign": Benign(),
    "pgd-at": PGDAT(PLAIN),
    "trades": Trades(attack=PLAIN),
    "free": Free(eps=0.0, repeats=3),
}


def make() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def trained(run, objective, search=False, **options):
    model = make()
    masks = prune(model, Hydra(), Global(), 0.5) if search else None
    training = Training(2, optimiser=SGD(0.1), schedule=Constant(), **options)
    history = run(model, objective, training, parameters=masks.parameters() if search else None, masks=masks)
    return model, history


@pytest.mark.parametrize("options", [{}, {"awp": AWP(0.05)}], ids=["", "awp"])
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_make_the_update_of_the_whole_batch(run, name, search, options):
    """Batches of 8, 8 and 4 in parts of 3, 3, 2 and 2, 2: uneven ones, too."""
    whole, history = trained(run, OBJECTIVES[name], search, **options)
    parted, in_parts = trained(run, OBJECTIVES[name], search, accumulate=3, **options)
    for (key, one), (other_key, other) in zip(whole.state_dict().items(), parted.state_dict().items(), strict=True):
        assert key == other_key
        if one.dtype == torch.bool:
            assert torch.equal(one, other)
        else:
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), key
    for one, other in zip(history, in_parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["train_accuracy"] == other["train_accuracy"]


def test_parts_hold_the_activations_of_one_part_at_a_time(run, network):
    sizes = []
    model = network()
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    run(model, Benign(), Training(1, accumulate=4))
    assert sizes == [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]
