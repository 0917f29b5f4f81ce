"""Certificates of networks whose smoothed version is known in closed form, and that nothing but the seed matters."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from hydraprune.data import Split
from hydraprune.errors import UserError
from hydraprune.evaluation import smoothing
from hydraprune.evaluation.smoothing import Certification, Compute, Prediction, parse_radii
from hydraprune.evaluation.smoothing.bounds import lower_bound, radius_of
from hydraprune.evaluation.smoothing.noise import GridNoise
from hydraprune.evaluation.smoothing.votes import open_images, sample

QUICK = Certification(n=1000, n0=50, radii=parse_radii("0,0.25"))


def images(count=6, side=4, classes=2):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.arange(count) % classes)


def linear(split, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(split.images[0].numel(), 2))
    with torch.no_grad():  # the boundary goes through the middle of the images
        model[1].bias -= model(split.images / 255).mean(0)
    return model.eval()


def distances(model, split):
    """Return the signed distance of each image to the boundary; above 0 is class 1."""
    with torch.no_grad():
        logits = model(split.images / 255)
    weight = model[1].weight.detach()
    return ((logits[:, 1] - logits[:, 0]) / (weight[1] - weight[0]).norm()).tolist()


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_linear_classifier_gets_its_class_and_no_more_than_its_exact_radius(adaptive):
    split = images(12)
    model = linear(split)
    certification = Certification(n=5000, radii=parse_radii("0,0.1,0.2,0.3"), adaptive=adaptive)
    rows = smoothing.certify(model, split, certification)
    for row, distance in zip(rows, distances(model, split), strict=True):
        if row.predict == smoothing.ABSTAIN:
            assert abs(distance) < 0.03
            continue
        assert row.predict == int(distance > 0)
        # Rounding the noise to the grid moves the exact radius by up to about the rounding, 0.5/255.
        assert row.radius <= abs(distance) + 0.002
        best = radius_of(lower_bound(5000, 5000, 0.001), 0.25)
        if not adaptive:
            assert row.radius >= min(abs(distance), best) * 0.9 - 0.02
    assert sum(row.predict != smoothing.ABSTAIN for row in rows) >= 9


def test_a_constant_classifier_gets_the_largest_radius_that_n_samples_allow():
    def constant(inputs):
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(inputs), 3)

    for row in smoothing.certify(constant, images(3), QUICK):
        assert row.predict == 1
        assert row.radius == radius_of(0.001 ** (1 / 1000), 0.25)
        assert row.samples == 1050


def test_a_coin_is_abstained_from():
    def parity(inputs):
        odd = (inputs.double().flatten(1) * 255).round().sum(1) % 2
        return torch.stack([odd, 1 - odd], 1)

    rows = smoothing.certify(parity, images(8), QUICK)
    assert all((row.predict, row.radius, row.correct) == (smoothing.ABSTAIN, 0.0, False) for row in rows)
    assert all(row.predict == smoothing.ABSTAIN for row in smoothing.predict(parity, images(8), Prediction(n=500)))


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_coverage_end_to_end_on_a_classifier_with_known_probabilities(adaptive):
    """2,000 certifications of one image by a threshold on one pixel; too large a radius comes with alpha at most."""
    alpha, pixel = 0.05, 128
    split = Split(torch.full((2000, 1, 1, 1), pixel, dtype=torch.uint8), torch.zeros(2000, dtype=torch.int64))
    noise = GridNoise(0.25)
    true = sum(noise.probability(step) for step in range(-noise.largest, 60))  # class 0 where t < 60

    def threshold(inputs):
        above = (inputs.flatten() * 255 >= pixel + 59.5).float()
        return torch.stack([1 - above, above], 1)

    certification = Certification(n=150, n0=10, alpha=alpha, radii=parse_radii("0,0.2"), adaptive=adaptive)
    rows = smoothing.certify(threshold, split, certification, compute=Compute(batch_size=20_000))
    exact = 0.25 * norm.ppf(true)
    wrong = sum(row.predict == 1 or row.radius > exact for row in rows)
    assert wrong <= 2000 * alpha + 4.3 * np.sqrt(2000 * alpha * (1 - alpha))
    assert np.mean([row.radius for row in rows]) > exact / 2


def test_counts_sum_to_n_and_n0_for_every_image_whatever_the_batches():
    split = images(5)
    for batch_size in (7, 64, 300):
        pile = open_images(split, [4, 0, 2], {"selection": 30, "estimation": 230}, torch.device("cpu"))
        done = list(
            sample(linear(split), pile, GridNoise(0.25), 0, Compute(batch_size), lambda _: False, lambda: None)
        )
        assert [votes.index for votes in done] == [4, 0, 2]
        for votes in done:
            assert votes.counts["selection"].sum() == 30
            assert votes.counts["estimation"].sum() == 230


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_same_seed_gives_the_same_rows_for_any_batch_size_and_choice_of_images(adaptive):
    split = images(6)
    model = linear(split)
    certification = Certification(n=1000, n0=50, radii=parse_radii("0,0.25"), adaptive=adaptive)

    def told(**options):
        return [
            (row.index, row.predict, row.radius, row.samples)
            for row in smoothing.certify(model, split, certification, **options)
        ]

    expected = told()
    for batch_size in (13, 100, 1050, 5000):
        assert told(compute=Compute(batch_size)) == expected
    assert told(indices=[5, 2]) == [expected[5], expected[2]]
    other = Certification(n=1000, n0=50, radii=parse_radii("0,0.25"), seed=1, adaptive=adaptive)
    assert [row.radius for row in smoothing.certify(model, split, other)] != [row[2] for row in expected]


def test_batches_are_full_across_images():
    sizes = []

    def model(inputs):
        sizes.append(len(inputs))
        return torch.zeros(len(inputs), 2)

    smoothing.certify(model, images(4), Certification(n=100, n0=10), compute=Compute(64))
    assert sizes == [64] * 6 + [440 - 6 * 64]


def test_predict_gives_the_smoothed_class_or_abstains():
    split = images(12)
    model = linear(split)
    rows = smoothing.predict(model, split, Prediction(n=200))
    for row, distance in zip(rows, distances(model, split), strict=True):
        assert row.predict in (int(distance > 0), smoothing.ABSTAIN)
        if abs(distance) > 0.15:
            assert row.predict != smoothing.ABSTAIN


def test_a_network_is_in_eval_mode_for_the_time_and_put_back():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)).train()
    mean = model[1].running_mean.clone()
    smoothing.certify(model, images(1), QUICK)
    assert model.training
    assert torch.equal(model[1].running_mean, mean)


def test_bf16_runs_the_network_in_bf16():
    split, seen = images(1), []
    model = linear(split)
    model.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    smoothing.certify(model, split, Certification(n=50, n0=10), compute=Compute(bf16=True))
    assert set(seen) == {torch.bfloat16}


def test_nan_logits_and_no_images_are_one_line():
    with pytest.raises(UserError, match="NaN or infinite logits under noise"):
        smoothing.certify(lambda inputs: torch.full((len(inputs), 2), float("nan")), images(2), QUICK)
    with pytest.raises(UserError, match="no image"):
        smoothing.certify(linear(images()), images(), QUICK, indices=[])


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"n0": 200, "n": 100}, "n0 must be at most n, got 200 > 100"),
        ({"alpha": 0.0}, "alpha must be above 0 and below 1"),
        ({"alpha": 1.0}, "alpha must be above 0 and below 1"),
        ({"n": 0, "n0": 0}, "n must be at least 1"),
        ({"n0": 0}, "n0 must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"n": 5, "n0": 5}, "5 samples certify nothing at alpha 0.001; n must be at least 10"),
        ({"n": 1000, "radii": parse_radii("0,0.75")}, r"radius 0.75 cannot be .* n must be at least 5114"),
        ({"radii": parse_radii("3")}, "a larger sigma is needed"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(values, answer):
    with pytest.raises(UserError, match=answer) as refused:
        Certification(**values)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("n", [50, 100, 101, 200, 399, 1000, 5000])
@pytest.mark.parametrize("radius", ["0.3", "0.4", "0.5", "0.75", "0.9"])
def test_the_samples_that_an_adaptive_refusal_proposes_are_accepted(n, radius):
    asked = {"n0": 10, "radii": parse_radii(radius), "adaptive": True}
    try:
        Certification(n=n, **asked)
    except UserError as refused:
        proposed = int(str(refused).rpartition(" ")[2])
        assert proposed > n
        Certification(n=proposed, **asked)


def test_the_fewest_samples_in_the_refusal_are_enough():
    Certification(n=5114, radii=parse_radii("0.75"))
    with pytest.raises(UserError, match="n must be at least"):
        Certification(n=5114, radii=parse_radii("0.75"), adaptive=True)
