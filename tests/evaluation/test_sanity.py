"""A network that only looks robust is flagged; one that is robust is left in peace."""

import pytest
import torch
from torch import Tensor, nn

from hydraprune.attacks import PGD, Eps
from hydraprune.data import Split
from hydraprune.evaluation import AttackProtocol, AutoAttack, Protocol, Square, evaluate

PGD20 = Protocol(PGD("linf", Eps("0.1"), 20), restarts=1)


def warnings(model: nn.Module, split: Split, protocol: AttackProtocol = PGD20, level="full") -> str:
    return "\n".join(evaluate(model, split, protocol, sanity=level, keep=0).warnings)


class Behind(nn.Module):
    """The robust network with something before or after it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Saturated(Behind):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * 1e4


class Quantised(Behind):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(torch.round(images * 8) / 8)


class Bytes(Behind):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner((images * 255).to(torch.uint8).float() / 255)


class Probabilities(Behind):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).softmax(1)


class Noisy(Behind):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + 0.1 * torch.randn_like(images))


class Mixing(Behind):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + images.mean(0) - 0.3)


class Misled(Behind):
    """The right answers, with the gradients of minus the logits."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        return 2 * logits.detach() - logits


@pytest.mark.parametrize(("norm", "eps"), [("linf", "0.1"), ("l2", "0.5")])
def test_a_robust_network_makes_no_warning(robust_network, digits, norm, eps):
    protocol = Protocol(PGD(norm, Eps(eps), 50), restarts=2)
    assert warnings(robust_network, digits, protocol) == ""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Saturated, "input gradient of the loss is zero"),
        (Quantised, "input gradient of the loss is zero"),
        (Bytes, "input gradient of the loss is zero"),
        (Probabilities, "returns probabilities, not logits"),
        (Noisy, "answers differently when it is asked twice"),
        (Mixing, "depends on the other images of its batch"),
    ],
)
def test_what_misleads_an_attack_is_named_by_the_cheap_checks(robust_network, digits, kind, words):
    torch.manual_seed(0)
    assert words in warnings(kind(robust_network), digits, level="model")
    assert warnings(kind(robust_network), digits, level="off").count(words) == 0


@pytest.mark.parametrize("kind", [Quantised, Bytes, Misled])
def test_masked_gradients_are_found_out_by_small_attacks(robust_network, digits, kind):
    found = warnings(kind(robust_network), digits)
    assert "fools with 200 queries" in found
    assert "where the ball holds every image" in found


def test_saturated_logits_are_found_out_by_another_loss(robust_network, digits):
    assert "APGD-DLR (50 steps) fools" in warnings(Saturated(robust_network), digits)


def test_an_attack_that_is_too_weak_is_found_out(robust_network, digits):
    assert "too optimistic" in warnings(robust_network, digits, Protocol(PGD("linf", Eps("0.1"), 1), restarts=1))


def test_square_is_not_judged_by_itself_but_pgd_must_not_beat_it(robust_network, digits):
    found = warnings(robust_network, digits, Square("linf", Eps("0.1"), queries=1))
    assert "PGD-20 fools" in found
    assert "black-box" not in found


def test_without_a_radius_only_the_model_is_looked_at(robust_network, digits):
    assert warnings(robust_network, digits, AutoAttack("linf", Eps("0"))) == ""


def test_a_model_in_training_mode_is_named_and_measured_in_eval_mode(robust_network, digits):
    model = nn.Sequential(nn.Dropout(0.5), robust_network).train()
    try:
        assert (
            warnings(model, digits, level="model") == "the model came in training mode; it was measured in eval mode"
        )
    finally:
        robust_network.eval()


def test_a_network_that_is_always_wrong_is_looked_at_without_an_error(robust_network, digits):
    labels = (robust_network(digits.images / 255).argmax(1) + 1) % 10
    assert warnings(robust_network, Split(digits.images, labels)) == ""


def test_the_checks_draw_from_no_global_generator_and_repeat(robust_network, digits):
    before = torch.get_rng_state()
    first, again = (warnings(Quantised(robust_network), digits) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), before)
