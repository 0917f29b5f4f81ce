"""AutoAttack as an evaluation: agrees with the library and with strong PGD, and resumes to the same counts."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from pyautoattack import AutoAttack as Reference
from safetensors import safe_open
from scipy.stats import binomtest
from torch import nn

from hydraprune.attacks import PGD, Budget, Eps
from hydraprune.data import Split
from hydraprune.errors import Interrupted, UserError
from hydraprune.evaluation import (
    PROTOCOLS,
    ApgdCe,
    ApgdT,
    AutoAttack,
    Protocol,
    State,
    clopper_pearson,
    evaluate,
    identity,
    model_card,
    protocol_from_name,
)
from hydraprune.evaluation.tally import Tally

EPS = Eps("0.1")
PGD_TWICE = Protocol(PGD("linf", EPS, 5), restarts=2)


@dataclass(frozen=True)
class Brief(AutoAttack):
    """AutoAttack with a small budget."""

    attacks: ClassVar[tuple[str, ...]] = AutoAttack.attacks

    @property
    def name(self) -> str:
        return "brief"

    @property
    def budget(self) -> Budget:
        return Budget(iterations=5, queries=20)


BRIEF = Brief("linf", EPS)


@dataclass(frozen=True)
class Gradients(AutoAttack):
    """AutoAttack without Square, which takes longest."""

    attacks: ClassVar[tuple[str, ...]] = ("apgd-ce", "apgd-t", "fab-t")

    @property
    def name(self) -> str:
        return "gradients"


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "pgd"])
def test_each_attack_is_found_by_its_name_and_says_what_it_is(name):
    protocol = protocol_from_name(name, "l2", Eps("1/2"))
    assert protocol.name == name
    assert protocol.threat == ("l2", 0.5)
    described = protocol.describe()
    assert (described["name"], described["norm"], described["eps"]) == ("autoattack", "l2", 0.5)
    assert described["attacks"] == ", ".join(protocol.rounds)
    assert json.dumps(described)
    assert protocol.rounds == (("apgd-ce", "apgd-t", "fab-t", "square") if name == "autoattack" else (name,))


@pytest.mark.parametrize("protocol", [AutoAttack("linf", Eps("0")), ApgdT("l2", Eps("0"))])
def test_a_radius_of_zero_is_clean_accuracy(robust_network, digits, protocol):
    result = evaluate(robust_network, digits, protocol)
    assert result.robust_accuracy == result.benign_accuracy > 0.8


def test_strong_pgd_and_apgd_agree_within_a_point(robust_network, digits):
    ours = evaluate(robust_network, digits, Protocol(PGD("linf", EPS, 50), restarts=3))
    theirs = evaluate(robust_network, digits, ApgdCe("linf", EPS))
    assert 0.3 < theirs.robust_accuracy < 0.9
    assert abs(ours.robust_accuracy - theirs.robust_accuracy) <= 0.0101
    assert ours.refused == theirs.refused == 0


@pytest.mark.slow
def test_pgd_never_reports_less_than_autoattack(robust_network, digits):
    split = Split(digits.images[:20], digits.labels[:20])
    full = evaluate(robust_network, split, AutoAttack("linf", EPS))
    pgd = evaluate(robust_network, split, Protocol(PGD("linf", EPS, 20), restarts=1))
    assert not (full.robust & ~pgd.robust).any()
    assert 0.2 < full.robust_accuracy < 0.9


@pytest.mark.slow
def test_its_gradient_attacks_are_the_librarys(robust_network, digits):
    split = Split(digits.images[:40], digits.labels[:40])
    ours = evaluate(robust_network, split, Gradients("linf", EPS))
    library = Reference(robust_network, eps=0.1, seed=0, version="custom", attacks=list(Gradients.attacks))
    library.apgd.n_restarts, library.verbose = 1, False
    found, _ = library.run_standard_evaluation(split.images.float() / 255, split.labels)
    standing = robust_network(found).argmax(1) == split.labels
    assert int((standing != ours.robust).sum()) <= 1  # its seeds are not ours


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 24)])
def test_networks_of_few_classes_and_images_that_are_not_square_are_evaluated(classes, shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes))
    images = torch.randint(60, 196, (6, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, model(images / 255).argmax(1))
    for norm, eps in (("linf", "0.1"), ("l2", "1")):
        result = evaluate(model, split, Brief(norm, Eps(eps)))
        assert result.robust_accuracy < result.benign_accuracy == 1.0
        assert result.refused == 0


def state(path, split, model, protocol=BRIEF, batch_size=25, seed=0):
    return State(path, identity(model, split, protocol, batch_size, seed, None), every_s=0.0)


def stopping_after(count):
    """A check that raises as a signal would, at its call `count`."""
    calls = iter(range(count))

    def check():
        if next(calls, None) is None:
            raise Interrupted("stop")

    return check


@pytest.mark.parametrize("protocol", [BRIEF, PGD_TWICE], ids=["autoattack", "pgd"])
def test_stopped_anywhere_and_resumed_it_counts_the_same(robust_network, digits, tmp_path, protocol):
    whole = evaluate(robust_network, digits, protocol, batch_size=25)
    kept, stops = state(tmp_path / "state", digits, robust_network, protocol), 0
    while True:
        try:
            check = stopping_after(140 if protocol is BRIEF else 9)
            parts = evaluate(robust_network, digits, protocol, batch_size=25, state=kept, check=check)
            break
        except Interrupted:
            stops += 1
            assert kept.path.exists()
            assert stops < 100
            torch.rand(3)  # another process has another past
    assert stops > 3
    assert torch.equal(parts.robust, whole.robust)
    assert torch.equal(parts.benign, whole.benign)
    assert torch.equal(parts.examples.adversarial, whole.examples.adversarial)
    assert torch.equal(parts.examples.clean, whole.examples.clean)
    assert parts.refused == whole.refused


def test_a_state_of_before_there_were_seconds_in_it_is_good_for_all_else():
    saved = Tally(2, refused=3, seconds=4.5).saved()
    assert Tally.of(saved).seconds == 4.5
    del saved.numbers["seconds"]
    old = Tally.of(saved)
    assert (old.batches, old.refused, old.seconds) == (2, 3, 0.0)


def test_a_state_holds_finished_batches_after_a_kill_without_warning(robust_network, digits, tmp_path):
    kept = state(tmp_path / "state", digits, robust_network, PGD_TWICE)

    class Killed(BaseException):
        """Nothing is saved on the way out."""

    calls = iter(range(20))

    def check():
        if next(calls, None) is None:
            raise Killed

    with pytest.raises(Killed):
        evaluate(robust_network, digits, PGD_TWICE, batch_size=25, state=kept, check=check)
    assert kept.load(Tally.of).batches == 1
    resumed = evaluate(robust_network, digits, PGD_TWICE, batch_size=25, state=kept)
    assert torch.equal(resumed.robust, evaluate(robust_network, digits, PGD_TWICE, batch_size=25).robust)
    assert kept.load(Tally.of).batches == 4
    kept.remove()
    assert not list(tmp_path.iterdir())


def test_the_state_of_another_evaluation_or_a_damaged_one_is_refused(robust_network, digits, tmp_path):
    path = tmp_path / "state"
    evaluate(robust_network, digits, PGD_TWICE, batch_size=25, state=state(path, digits, robust_network, PGD_TWICE))
    other = [
        state(path, digits, robust_network, BRIEF),
        state(path, digits, robust_network, PGD_TWICE, batch_size=20),
        state(path, digits, robust_network, PGD_TWICE, seed=1),
        state(path, Split(digits.images[:50], digits.labels[:50]), robust_network, PGD_TWICE),
        state(path, digits, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), PGD_TWICE),
    ]
    for one in other:
        with pytest.raises(UserError, match="belongs to another evaluation"):
            one.load(Tally.of)
    for damaged in (b"", b"x" * 100, path.read_bytes()[:-7]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a usable evaluation state"):
            other[0].load(Tally.of)


@pytest.mark.parametrize("place", [-1, -40])
def test_one_bit_of_a_verdict_changed_on_disk_is_noticed(robust_network, digits, tmp_path, place):
    own = state(tmp_path / "state", digits, robust_network, PGD_TWICE)
    evaluate(robust_network, digits, PGD_TWICE, batch_size=25, state=own)
    content = bytearray(own.path.read_bytes())
    content[place] ^= 1
    own.path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="not a usable evaluation state; delete it to start anew"):
        own.load(Tally.of)


def test_the_state_is_small_where_no_examples_are_kept(robust_network, digits, tmp_path):
    kept = state(tmp_path / "state", digits, robust_network, PGD_TWICE)
    result = evaluate(robust_network, digits, PGD_TWICE, batch_size=25, state=kept, keep=0)
    assert len(result.examples.labels) == 0
    assert result.robust_accuracy < result.benign_accuracy
    with safe_open(kept.path, framework="pt") as file:
        assert file.get_tensor("examples.clean").numel() == 0


def test_at_most_so_many_examples_are_kept_the_first_ones(robust_network, digits):
    everything = evaluate(robust_network, digits, PGD_TWICE, batch_size=25)
    some = evaluate(robust_network, digits, PGD_TWICE, batch_size=25, keep=7)
    assert len(everything.examples.labels) > 7
    assert torch.equal(some.examples.adversarial, everything.examples.adversarial[:7])


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 1), (87, 100), (500, 1000)])
def test_the_interval_is_scipys_exact_one(k, n):
    truth = binomtest(k, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(k, n) == pytest.approx((truth.low, truth.high), abs=1e-12)


def test_no_misses_in_ten_leave_a_quarter_to_thirty_per_cent_possible():
    assert clopper_pearson(10, 10)[0] == pytest.approx(0.025 ** (1 / 10))


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_no_interval_without_a_sample(k, n):
    with pytest.raises(UserError, match="no interval"):
        clopper_pearson(k, n)


def test_only_a_sample_has_an_interval(robust_network, digits):
    result = evaluate(robust_network, digits, PGD_TWICE)
    assert result.intervals(100) == (None, None)
    benign, robust = result.intervals(497)
    assert robust[0] < result.robust_accuracy < robust[1] < benign[1]


def test_a_model_card_claims_autoattack_only_when_it_ran(robust_network, digits):
    result = evaluate(robust_network, digits, Protocol(PGD("linf", Eps("8/255"), 1), restarts=1))
    facts = {"name": "t", "dataset": "digits", "architecture": "mlp", "population": 497, "additional_data": False}
    card = model_card(result, Protocol(PGD("linf", Eps("8/255"), 1), restarts=1), **facts)
    assert "autoattack_acc" not in card
    assert card["footnote"].startswith("robust accuracy is under pgd1x1, not AutoAttack; measured on the first 100")
    card = model_card(result, AutoAttack("linf", Eps("8/255")), **facts | {"population": 100})
    assert (card["eps"], card["threat_model"], card["number_forward_passes"]) == ("8/255", "Linf", 1)
    assert card["clean_acc"] == f"{100 * result.benign_accuracy:.2f}"
    assert card["autoattack_acc"] == card["reported"] == f"{100 * result.robust_accuracy:.2f}"
    assert "footnote" not in card
    assert "autoattack_acc" not in model_card(result, ApgdT("linf", Eps("8/255")), **facts)
