"""Robust accuracy where the truth is known, and what the evaluation must refuse, count and leave alone."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hydraprune.attacks import PGD, Eps, outside
from hydraprune.data import Split
from hydraprune.errors import UserError
from hydraprune.evaluation import Adversarial, Protocol, evaluate, protocol_from_name

LINF = Protocol(PGD("linf", Eps("0.1"), steps=20), restarts=2)


class Linear(nn.Module):
    """Two classes, logits (0, w·x + b): the distance of every image to the border is known in closed form."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        value = images.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(value), value], 1)


def gray(count, low=90, high=166, seed=0):
    """Images far enough from black and white that no ball of 0.1 leaves the box (25.5 of 255)."""
    return torch.randint(
        low, high, (count, 1, 3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def linear(seed=0):
    """A border through the middle of the images."""
    weight = torch.randn(9, generator=torch.Generator().manual_seed(seed))
    return Linear(weight, -float(weight.sum()) * 0.5)


def labelled(model, images, wrong=0):
    """Label images as the model sees them, the first `wrong` of them the other way."""
    labels = model(images.float() / 255).argmax(1)
    labels[:wrong] = 1 - labels[:wrong]
    model.batches.clear()
    return Split(images, labels)


def margins(model, split):
    return (model(split.images.float() / 255)[:, 1]).detach().abs()


@pytest.mark.parametrize(("norm", "eps"), [("linf", "0.02"), ("linf", "0.05"), ("l2", "0.1"), ("l2", "0.05")])
def test_the_robust_set_of_a_linear_classifier_is_found_exactly(norm, eps):
    model = linear()
    split = labelled(model, gray(200), wrong=20)
    dual = model.weight.abs().sum() if norm == "linf" else model.weight.norm()
    margin, reach = margins(model, split), float(Eps(eps)) * float(dual.detach())
    clear = (margin - reach).abs() > 0.01 * reach  # the others lie on the border but for rounding
    result = evaluate(model, split, Protocol(PGD(norm, Eps(eps), steps=40), restarts=2), batch_size=64)
    truth = margin > reach
    truth[:20] = False
    assert 0.1 < truth.double().mean() < 0.8
    assert clear.double().mean() > 0.9
    assert torch.equal(result.robust[clear], truth[clear])
    assert result.benign.tolist() == [False] * 20 + [True] * 180
    assert result.refused == 0


def test_the_box_protects_images_at_its_corners():
    """A black pixel cannot get darker: the reach is Σ |w| · min(eps, room towards the border's side)."""
    model = Linear(torch.tensor([1.0, -1.0, 2.0, 1.0, -2.0, 1.0, 1.0, 1.0, 1.0]), -0.3)
    images = gray(300, low=0, high=2) * gray(300, low=0, high=256, seed=1)
    split = labelled(model, images)
    pixels = images.flatten(1).double() / 255
    falling = (split.labels[:, None] == 1) == (model.weight > 0)  # pixels that the attack makes darker
    room = torch.where(falling, pixels, 1 - pixels).clamp_max(0.1)
    reach, margin = (room * model.weight.detach().abs()).sum(1), margins(model, split)
    clear = (margin - reach).abs() > 0.01
    robust = evaluate(model, split, LINF).robust
    assert torch.equal(robust[clear], (margin > reach)[clear])
    assert (robust & (margin < 0.1 * model.weight.abs().sum())).any()  # some stand only because of the box


def test_robust_images_are_benign_and_examples_are_confirmed():
    model = linear()
    split = labelled(model, gray(100), wrong=10)
    result = evaluate(model, split, Protocol(PGD("linf", Eps("0.05"), steps=10), restarts=3), batch_size=30)
    assert not (result.robust & ~result.benign).any()
    fooled = result.benign & ~result.robust
    examples = result.examples
    assert 10 < int(fooled.sum()) == len(examples.labels) < 90
    assert torch.equal(examples.clean, split.images[fooled] / 255)
    assert torch.equal(examples.labels, split.labels[fooled])
    assert torch.equal(examples.predicted_clean, examples.labels)
    assert torch.equal(model(examples.adversarial).argmax(1), examples.predicted_adversarial)
    assert (examples.predicted_adversarial != examples.labels).all()
    assert not outside(examples.clean, examples.adversarial, "linf", 0.05).any()
    assert result.benign_accuracy == 0.9
    assert result.robust_accuracy == float(result.robust.double().mean())


def test_only_standing_images_are_attacked_again():
    model = linear()
    split = labelled(model, gray(50), wrong=5)
    once = evaluate(model, split, Protocol(PGD("linf", Eps("0.04"), steps=9), restarts=1))
    model.batches.clear()
    left = int(once.robust.sum())
    assert 0 < left < 45
    evaluate(model, split, Protocol(PGD("linf", Eps("0.04"), steps=9), restarts=3))
    # the clean pass; 9 steps and the check on what was right; then on what still stands
    assert model.batches == [50, *[45] * 10, *[left] * 10, *[left] * 10]


def test_a_batch_with_nothing_left_standing_is_not_attacked_again():
    model = linear()
    split = labelled(model, gray(10))
    result = evaluate(model, split, Protocol(PGD("linf", Eps("1"), steps=2), restarts=5))
    assert result.robust_accuracy == 0.0
    assert model.batches == [10, 10, 10, 10]


def test_an_image_counts_as_fooled_when_any_iterate_fooled_the_model():
    class Island(nn.Module):
        """Class 1 only near brightness 0.55: an attack that walks on has it behind it."""

        def forward(self, images: Tensor) -> Tensor:
            brightness = images.flatten(1).mean(1)
            wrong = 10 * brightness - 5 + 100 * ((brightness > 0.54) & (brightness < 0.56))
            return torch.stack([torch.full_like(brightness, 50.0), wrong], 1)

    split = Split(torch.full((1, 1, 2, 2), 128, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    attack = PGD("linf", Eps("0.1"), steps=10, step_size=Eps("0.015"), random_start=False)
    assert Island()(attack.perturb(Island(), split.images / 255, lambda z: z[:, 1])).argmax(1).item() == 0
    result = evaluate(Island(), split, Protocol(attack, restarts=1))
    assert not result.robust.any()
    assert 0.54 < result.examples.adversarial.mean() < 0.56


@pytest.mark.parametrize("restarts", [1, 3])
def test_answers_that_flip_when_asked_again_are_refused_and_counted(restarts):
    class Flips(Linear):
        """Wrong whenever an attack looks, right whenever it is asked without gradients."""

        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits.flip(1) if torch.is_grad_enabled() else logits

    model = Flips(torch.ones(9), -4.5)
    images = torch.cat([gray(4, 30, 40), gray(3, 220, 230)])
    split = Split(images, torch.tensor([0] * 4 + [1] * 3))
    result = evaluate(model, split, Protocol(PGD("linf", Eps("0.01"), steps=2), restarts=restarts))
    assert result.robust.all()
    assert result.refused == 7 * restarts
    assert len(result.examples.labels) == 0


def test_examples_outside_the_ball_are_refused_and_counted():
    @dataclass(frozen=True)
    class Cheats(PGD):
        def perturb(self, model, images, loss_fn, generator=None, watch=None) -> Tensor:
            return images - 0.2

    model = Linear(torch.ones(9), -4.5)
    split = Split(gray(6, 130, 150), torch.ones(6, dtype=torch.int64))
    result = evaluate(model, split, Protocol(Cheats("linf", Eps("0.1")), restarts=2))
    assert result.robust.all()
    assert result.refused == 12


def test_nan_names_the_batch():
    class Breaks(Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits * torch.nan if len(self.batches) == 3 else logits

    with pytest.raises(UserError, match="NaN or infinite logits in batch 2"):
        evaluate(Breaks(torch.ones(9)), Split(gray(12), torch.zeros(12, dtype=torch.int64)), LINF, batch_size=4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_blinded_by_nan_gradients_does_not_pass_for_robustness(norm):
    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = (images - images.detach()).square().sqrt().flatten(1).sum(1)  # 0, but its gradient is ∞ · 0
            return torch.stack([value + 1, value], 1)

    split = Split(gray(3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UserError, match="gradients are NaN or infinite under attack in batch 0"):
        evaluate(Blind(), split, Protocol(PGD(norm, steps=3)))


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="no image to evaluate on"):
        evaluate(linear(), Split(gray(0), torch.zeros(0, dtype=torch.int64)), LINF)


@pytest.mark.parametrize("protocol", [Protocol(PGD(eps=Eps("0")), 5), Protocol(PGD(eps=Eps("0.1")), restarts=0)])
def test_without_an_attack_robust_accuracy_is_clean_accuracy(protocol):
    model = linear()
    result = evaluate(model, labelled(model, gray(20), wrong=4), protocol)
    assert result.robust_accuracy == result.benign_accuracy == 0.8
    assert model.batches == [20]
    assert len(result.examples.labels) == 0


def test_a_network_that_is_always_wrong_is_not_attacked():
    model = linear()
    result = evaluate(model, labelled(model, gray(8), wrong=8), LINF)
    assert (result.benign_accuracy, result.robust_accuracy) == (0.0, 0.0)
    assert model.batches == [8]


def test_batches_change_no_outcome_and_keep_the_order_on_file():
    model = linear()
    split = labelled(model, gray(40), wrong=3)
    protocol = Protocol(PGD("linf", Eps("0.03"), steps=20), restarts=2)
    whole, parts = evaluate(model, split, protocol, batch_size=40), evaluate(model, split, protocol, batch_size=7)
    assert torch.equal(whole.robust, parts.robust)
    assert torch.equal(whole.examples.clean, parts.examples.clean)


def test_an_evaluation_is_a_function_of_its_seed_and_draws_from_no_global_generator():
    model = linear()
    split = labelled(model, gray(40))
    protocol = Protocol(PGD("linf", Eps("0.03"), steps=1), restarts=1)
    before = torch.get_rng_state()
    first, again, other = (evaluate(model, split, protocol, seed=seed).examples.adversarial for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_more_restarts_find_more():
    model = linear()
    split = labelled(model, gray(100))
    one, ten = (evaluate(model, split, Protocol(PGD("l2", Eps("0.15"), 1), n)).robust for n in (1, 10))
    assert not (ten & ~one).any()
    assert ten.sum() < one.sum()


def test_the_model_is_in_eval_mode_inside_and_comes_back_as_it_was():
    modes = []
    model = nn.Sequential(linear(), nn.BatchNorm1d(2)).train()
    model[0].eval()
    model.register_forward_hook(lambda module, *_: modes.append(module[1].training))
    evaluate(model, Split(gray(4), torch.zeros(4, dtype=torch.int64)), LINF)
    assert modes
    assert not any(modes)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert model[1].num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_check_may_stop_before_each_batch_round_and_forward_pass_of_an_attack():
    model, calls = linear(), []
    split = labelled(model, gray(6))
    evaluate(model, split, Protocol(PGD(eps=Eps("1/1000")), 3), batch_size=3, check=lambda: calls.append(1))
    assert len(calls) == 2 * (1 + 3 * (1 + 10))
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, split, LINF, check=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert model.training


def test_the_bar_counts_batches_and_shows_the_bound_so_far():
    notes = []

    class Bar:
        def __init__(self, title, total):
            notes.append((title, total))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            notes.append("end")

        def advance(self, steps=1):
            notes.append(steps)

        def note(self, text):
            notes.append(text)

    class Progress:
        def task(self, title, total, done=0):
            return Bar(title, total)

        def say(self, text):
            raise AssertionError(text)

    model = linear()
    split = labelled(model, gray(4), wrong=1)
    evaluate(model, split, Protocol(PGD(eps=Eps("0"))), batch_size=2, progress=Progress(), title="look")
    assert notes == [("look", 2), 1, "robust ≤ 50.0%", 1, "robust ≤ 75.0%", "end"]


@pytest.mark.parametrize(
    ("name", "steps", "restarts"), [("pgd50", 50, 10), ("pgd20x5", 20, 5), ("pgd1x1", 1, 1), ("pgd100x20", 100, 20)]
)
def test_protocols_by_name(name, steps, restarts):
    protocol = protocol_from_name(name, "l2", Eps("8/255"))
    assert protocol == Protocol(PGD("l2", Eps("8/255"), steps), restarts)
    assert protocol.name == f"pgd{steps}x{restarts}"
    assert protocol_from_name(protocol.name, "l2", Eps("8/255")) == protocol


@pytest.mark.parametrize("name", ["pgd0", "pgd5x0", "PGD50", "pgd50x", "pgd-1", "pgd", "fab", "pgd50 ", "pgd٥"])
def test_unknown_protocols_are_refused_with_an_example(name):
    with pytest.raises(UserError, match=r"unknown attack .* such as pgd50 or pgd20x5"):
        protocol_from_name(name, "linf", Eps("0.1"))


def test_a_protocol_is_described_in_full_beside_its_result():
    measured = {"name": "pgd", "norm": "linf", "eps": 0.1, "steps": 50, "restarts": 10, "step_size": 0.025}
    assert Protocol().describe() == {**measured, "start": "uniform"}
    assert Protocol(PGD(random_start=False)).describe()["start"] == "image"


def test_the_first_examples_are_the_first():
    examples = Adversarial(*(torch.arange(5) for _ in range(5)))
    assert all(value.tolist() == [0, 1] for value in vars(examples.first(2)).values())


def test_what_is_attacked_in_place_of_the_model_decides_where_attacks_go_and_nothing_else():
    model = linear()
    split = labelled(model, gray(60), wrong=6)

    class Liar(nn.Module):
        """Calls everything fooled, and its gradient shows nowhere."""

        def forward(self, images):
            wrong = torch.where(split.labels[:1] == 0, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
            return wrong.expand(len(images), 2) + 0.0 * images.flatten(1).sum(1, keepdim=True)

    honest = evaluate(model, split, LINF, batch_size=60)
    same = evaluate(model, split, LINF, batch_size=60, attacked=linear())
    assert torch.equal(honest.robust, same.robust)
    lied = evaluate(model, split, LINF, batch_size=60, attacked=Liar())
    assert torch.equal(lied.benign, honest.benign)
    assert lied.refused > 0
    assert not (lied.benign & ~lied.robust & honest.robust).any()
    assert lied.robust.sum() > honest.robust.sum()
