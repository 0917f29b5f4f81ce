"""Averaged parameters: the closed forms, undisturbed training, and BatchNorm statistics that belong to them."""

import pytest
import torch
from torch import nn

from hydraprune.data import Batches
from hydraprune.data.seeds import derived_generator
from hydraprune.engine import SGD, Average, Constant, Distillation, RunningAverage, Training, recalibrate
from hydraprune.objectives import Benign, Gaussian, Loss, Objective
from hydraprune.sparsity import Global, Hydra, prune

LR = 0.25
OFF = Average()


class Shrink(Objective):
    """L = Σ p² / 2: plain SGD multiplies every parameter by 1 − lr in each update."""

    def losses(self, model, batch, progress):
        yield Loss(sum(p.square().sum() for p in model.parameters()) / 2, torch.tensor(0))


def single():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    model[1].weight = nn.Parameter(torch.ones(1, 1))
    return model


def training(epochs=4, average=OFF, **options):
    options = {"optimiser": SGD(LR, momentum=0.0, weight_decay=0.0), "schedule": Constant(), **options}
    return Training(epochs, 8, average=average, **options)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_ema_is_the_closed_form(run, decay):
    model = single()
    run(model, Shrink(), training(average=Average(ema=decay)))
    weights = [decay ** (12 - t) for t in range(1, 13)]
    expected = sum(w * (1 - LR) ** t for t, w in enumerate(weights, start=1)) / sum(weights)
    assert model[1].weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("share", "epochs"), [(0.0, [1, 2, 3, 4]), (0.5, [3, 4]), (0.75, [4]), (0.99, [4]), (1.0, [])]
)
def test_swa_averages_the_ends_of_the_epochs_after_its_share(run, share, epochs):
    model = single()
    run(model, Shrink(), training(average=Average(swa=share)))
    ends = [(1 - LR) ** (3 * epoch) for epoch in epochs] or [(1 - LR) ** 12]
    assert model[1].weight.item() == pytest.approx(sum(ends) / len(ends), rel=1e-5)


def test_ema_counts_every_update_of_a_batch_that_yields_several(run):
    class Twice(Shrink):
        def losses(self, model, batch, progress):
            for _ in range(2):
                yield from super().losses(model, batch, progress)

    model = single()
    run(model, Twice(), training(1, Average(ema=0.5)))
    weights = [0.5 ** (6 - t) for t in range(1, 7)]
    expected = sum(w * (1 - LR) ** t for t, w in enumerate(weights, start=1)) / sum(weights)
    assert model[1].weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("average", [Average(ema=0.8), Average(swa=0.5)], ids=["ema", "swa"])
@pytest.mark.parametrize("search", [False, True])
def test_training_is_undisturbed_and_what_was_validated_last_is_what_is_kept(run, network, average, search):
    found = {}
    for name, chosen in (("without", OFF), ("with", average)):
        model = network()
        masks = prune(model, Hydra(), Global(), 0.5) if search else None
        states = []

        def validate(seen, states=states):
            states.append({key: value.clone() for key, value in seen.state_dict().items()})
            return {"validation_benign": 0.5, "validation_robust": 0.5}

        parameters = masks.scores() if search else None
        options = {"optimiser": SGD(1.0)} if search else {}
        history = run(
            model, Benign(), training(4, chosen, **options), parameters=parameters, masks=masks, validate=validate
        )
        found[name] = history, states, model
        if masks is not None:
            kept = {key: mask.clone() for key, mask in masks.as_dict().items()}
            masks.update()
            assert all(torch.equal(kept[key], mask) for key, mask in masks.as_dict().items())
    (plain, _, _), (averaged, states, model) = found["without"], found["with"]
    assert [record["loss"] for record in plain] == [record["loss"] for record in averaged]
    assert all(torch.equal(states[-1][key], value) for key, value in model.state_dict().items())
    live = found["without"][2].state_dict()
    assert any(not torch.equal(live[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("robust", [[0.2, 0.9, 0.3], [0.9, 0.2, 0.3]])
def test_best_selects_among_averaged_networks(run, network, robust):
    model, states, answers = network(), [], iter(robust)

    def validate(seen):
        states.append({key: value.clone() for key, value in seen.state_dict().items()})
        return {"validation_benign": 0.5, "validation_robust": next(answers)}

    run(model, Benign(), training(3, Average(ema=0.8), select="best"), validate=validate)
    best = states[robust.index(0.9)]
    assert all(torch.equal(best[key], value) for key, value in model.state_dict().items())


def test_averaged_pruned_weights_stay_exactly_0(run, network):
    model = network()
    masks = prune(model, Hydra(), Global(), 0.7)
    masks.fix()
    weights = [p for p in model.parameters() if p.requires_grad]
    run(model, Benign(), training(2, Average(ema=0.8)), parameters=weights, masks=masks)
    for name, mask in masks.as_dict().items():
        assert not model.get_submodule(name.removesuffix(".weight")).weight[~mask].any()


def test_recalibrated_statistics_are_those_of_a_whole_pass(network, batches):
    model = network().train()
    data: Batches = batches(drop_last=True)
    with torch.no_grad():
        features = [model[0](batch.images) for batch in data.epoch(0)]
    before, rng = model[1].num_batches_tracked.item(), torch.get_rng_state()
    recalibrate(model, data.epoch(0))
    means = torch.stack([x.mean((0, 2, 3)) for x in features])
    variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in features])
    torch.testing.assert_close(model[1].running_mean, means.mean(0))
    torch.testing.assert_close(model[1].running_var, variances.mean(0))
    whole = torch.cat(features)
    torch.testing.assert_close(model[1].running_mean, whole.mean((0, 2, 3)))
    assert before == 0
    assert model[1].momentum == 0.1
    assert all(module.training for module in model.modules())
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("distilled", [False, True])
def test_an_average_for_smoothing_is_calibrated_on_noise_that_is_the_same_each_time(run, network, batches, distilled):
    model, states, sigma = network(), [], 0.5

    def validate(seen):
        states.append({key: value.clone() for key, value in seen.state_dict().items()})
        return {"validation_benign": 0.5, "validation_robust": 0.5}

    options = {"distillation": Distillation(0.5)} if distilled else {}
    run(
        model,
        Gaussian(sigma),
        training(2, Average(ema=0.5), **options),
        validate=validate,
        teacher=network() if distilled else None,
    )
    assert all(torch.equal(states[-1][key], value) for key, value in model.state_dict().items())
    generator = derived_generator("calibration", 3, 0)  # 3 is the seed of the stage
    images = [batch.images for batch in batches().epoch(0)]
    noisy = [each + sigma * torch.randn(each.shape, generator=generator) for each in images]
    for shown, are_those in ((images, False), (noisy, True)):
        with torch.no_grad():
            variances = torch.stack([model[0](each).var((0, 2, 3)) for each in shown])
        assert torch.allclose(model[1].running_var, variances.mean(0), rtol=1e-4) == are_those


def test_recalibration_leaves_modes_as_they_were_and_makes_no_pass_without_batchnorm(network, batches):
    model = network().eval()
    recalibrate(model, batches().epoch(0))
    assert not any(module.training for module in model.modules())

    def untouched():
        raise AssertionError("no batch is needed")
        yield

    recalibrate(nn.Linear(1, 1), untouched())


def test_a_state_without_average_loads_and_one_with_goes_on_to_the_same_bits():
    parameter = nn.Parameter(torch.rand(3))
    one, other = (RunningAverage(Average(ema=0.9), [parameter]) for _ in range(2))
    other.load_state(one.state())
    assert other.count == 0
    one.after_update()
    other.load_state(one.state())
    with torch.no_grad():
        parameter.mul_(2)
    one.after_update()
    other.after_update()
    assert torch.equal(one.values[0], other.values[0])
