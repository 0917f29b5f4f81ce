"""NaN and infinite losses, and memory that runs out: one line that names the step or the knob, and no lost state."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

import pytest
import torch

from hydraprune.console import SilentProgress
from hydraprune.engine import AWP, SGD, Adam, Average, Checkpointing, Constant, Savings, Training, memory_advice
from hydraprune.engine.group import Group
from hydraprune.engine.health import largest_entry
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.objectives import Benign, Free, Loss, Objective
from hydraprune.sparsity import Global, Hydra, prune


class Said(SilentProgress):
    """Notes the lines that stay."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


class Spoil(torch.autograd.Function):
    """The loss as it is, its gradient times a factor."""

    @staticmethod
    def forward(ctx, loss, factor):
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


@dataclass(frozen=True)
class Broken(Objective):
    """A loss, or only its gradient, that is `value` at some steps."""

    value: float = math.nan
    at: tuple = (4,)
    gradient_only: bool = False
    inner: Objective = field(default_factory=Benign)

    def losses(self, model, batch, progress) -> Iterator[Loss]:
        for loss in self.inner.losses(model, batch, progress):
            bad = progress.step in self.at
            total = loss.total
            if bad:
                total = Spoil.apply(total, self.value) if self.gradient_only else total * self.value
            yield Loss(total, loss.correct, loss.logits)


def saved(paths):
    found = []
    return found if Savings(paths.checkpoint, paths.checkpoint_before, print).load(found.append) else []


@pytest.mark.parametrize("gradient_only", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_update_is_named_by_its_step_epoch_and_stage(run, network, value, gradient_only):
    what = "the gradient is (nan|inf) and the loss" if gradient_only else f"the loss is {value}"
    with pytest.raises(HydrapruneError, match=rf"^test: {what}.* at step 4 \(epoch 1, batch 1, counted from 0\);"):
        run(network(), Broken(value, gradient_only=gradient_only), Training(3))


def test_the_last_good_state_is_kept_and_a_lost_one_is_never_saved(run, network, paths):
    with pytest.raises(HydrapruneError, match="what is saved is from before it"):
        run(network(), Broken(), Training(3), every=0)
    (content,) = saved(paths)
    state = torch.load(BytesIO(content), weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 1)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_parameters_that_overflow_in_the_last_update_before_a_saving_are_not_saved(run, network, paths):
    with pytest.raises(HydrapruneError, match="made parameters NaN or infinite"):
        steep = Broken(1e5, at=(0,), gradient_only=True)
        run(network(), steep, Training(1, optimiser=SGD(3e38, momentum=0), schedule=Constant()), every=0)
    assert not paths.checkpoint.exists()


def test_a_search_that_makes_nan_of_scores_names_the_step(run, network):
    model = network()
    masks = prune(model, Hydra(), Global(), 0.5)
    with pytest.raises(HydrapruneError, match=r"test: the gradient is nan .* at step 4 \(epoch 1"):
        broken = Broken(gradient_only=True)
        run(model, broken, Training(3, optimiser=SGD(1.0)), parameters=masks.scores(), masks=masks)


def test_looking_for_nan_makes_nobody_wait_until_a_saving_or_the_end_of_an_epoch(run, network, monkeypatch):
    """On a GPU each `tolist`, `item` and `bool` of a tensor waits for all that was asked of it."""
    waits = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, real=real: (waits.append(1), real(self))[1])
    counts = []
    for epochs in (1, 2):
        waits.clear()
        run(network(), Benign(), Training(epochs, optimiser=SGD(0.1)))
        counts.append(len(waits))
    per_epoch = counts[1] - counts[0]
    waits.clear()
    run(network(), Benign(), Training(1, optimiser=SGD(0.1)), every=Checkpointing(None, 1))
    assert len(waits) > counts[0]  # three savings were looked at
    assert per_epoch <= 4  # two looks of the watch, the totals; none for each of the three steps


@pytest.mark.parametrize("optimiser", [SGD(0.1), Adam(0.01)], ids=str)
@pytest.mark.parametrize("gradient_only", [False, True])
def test_an_update_left_out_leaves_no_trace(run, network, batches, optimiser, gradient_only):
    """The network is as if the batch had not been; its BatchNorm statistics and average, too."""
    options = {"optimiser": optimiser, "schedule": Constant(), "average": Average(ema=0.5)}
    plain, model, said = network(), network(), Said()
    for each in (plain, model):
        each[3].p = 0.0  # no draws
    broken = Broken(at=(2,), gradient_only=gradient_only)
    history = run(model, broken, Training(1, on_nan="skip", **options), progress=said)
    assert len(said.lines) == 1
    assert "at step 2; the update is left out" in said.lines[0]
    assert history[0]["skipped_updates"] == 1
    assert math.isfinite(history[0]["loss"])

    class Two:
        """The same batches without the third."""

        def __init__(self, batches):
            self.batches = batches

        def __len__(self):
            return 2

        def epoch(self, number, start=0):
            return (batch for index, batch in enumerate(self.batches.epoch(number)) if start <= index < 2)

    two = Two(batches())
    whole = run(plain, Benign(), Training(1, **options), data=two)
    assert whole[0]["loss"] == pytest.approx(history[0]["loss"])
    names = [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(plain.get_parameter(name), model.get_parameter(name)) for name in names)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_search_with_weight_perturbation_leaves_out_a_bad_update_and_goes_on(run, network, gradient_only):
    model, said = network(), Said()
    masks = prune(model, Hydra(), Global(), 0.5)
    broken = Broken(at=(1,), gradient_only=gradient_only)
    training = Training(1, optimiser=SGD(0.1), awp=AWP(0.1), on_nan="skip")
    history = run(model, broken, training, parameters=masks.scores(), masks=masks, progress=said)
    assert len(said.lines) == history[0]["skipped_updates"] == 1
    assert "at step 1; the update is left out" in said.lines[0]
    assert all(scores.isfinite().all() for scores in masks.scores())


def test_an_error_that_may_be_of_one_process_alone_asks_nothing_of_the_others(run, network, monkeypatch):
    """They are not where they would answer: each would wait for the other in another call."""

    class Failing(Objective):
        def losses(self, model, batch, progress):
            for name in ("gather", "any"):
                monkeypatch.setattr(Group, name, lambda *_, name=name: pytest.fail(name))
            raise HydrapruneError("of this process")
            yield

    with pytest.raises(HydrapruneError, match="of this process"):
        run(network(), Failing(), Training(1))


def test_ten_updates_left_out_in_a_row_end_the_run(run, network):
    said = Said()
    with pytest.raises(HydrapruneError, match="at step 11, and 10 updates in a row were left out"):
        run(network(), Broken(at=tuple(range(2, 20))), Training(9, on_nan="skip"), progress=said)
    assert len(said.lines) == 10


def test_the_rest_of_a_batch_is_left_out_with_its_first_update(run, network):
    broken = Broken(at=(1,), inner=Free(repeats=3))
    said = Said()
    history = run(network(), broken, Training(1, on_nan="skip"), progress=said)
    assert len(said.lines) == history[0]["skipped_updates"] == 1


def test_the_largest_entry_sees_nan_and_does_not_overflow_before_an_entry_does():
    big = torch.full((1000,), 3e38)
    assert float(largest_entry([big, -big])) == float(big[0])
    for bad in (math.nan, math.inf, -math.inf):
        assert not largest_entry([big, torch.tensor([1.0, bad])]).isfinite()
    assert float(largest_entry([])) == 0.0


@dataclass(frozen=True)
class Hungry(Objective):
    error: Exception = field(default_factory=MemoryError)

    def losses(self, model, batch, progress) -> Iterator[Loss]:
        raise self.error
        yield


CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you …")


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore advice"), "on the GPU"),
        (CPU, "in main memory"),
        (MemoryError(), "in main memory"),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_is_one_line_that_says_which_knobs(run, network, error, place):
    with pytest.raises(
        UserError, match=f"^test: out of memory {place}; a smaller batch_size .* larger accumulate"
    ) as e:
        run(network(), Hungry(error), Training(1))
    assert "\n" not in str(e.value)


def test_other_errors_are_not_taken_for_want_of_memory():
    with pytest.raises(RuntimeError, match="shapes differ"), memory_advice("x", "y"):
        raise RuntimeError("shapes differ")


def test_a_network_that_is_too_large_for_this_machine_is_answered_so():
    with pytest.raises(UserError, match="out of memory in main memory; less"), memory_advice("x", "less"):
        torch.empty(2**60)
