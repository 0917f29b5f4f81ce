"""Devices, threads, precision and memory format."""

import os
import platform

import pytest
import torch
from torch import nn

from hydraprune.engine import Hardware, available_cores, default_threads
from hydraprune.errors import UserError


def test_threads_are_set():
    Hardware("cpu", threads=1).fabric()
    assert torch.get_num_threads() == 1


def test_no_thread_count_means_every_core_that_this_process_may_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Hardware("cpu").fabric()
    assert torch.get_num_threads() == available_cores() >= 1


@pytest.mark.parametrize(("asked", "threads"), [("3", 3), ("0", None), ("2,1", None), ("", None)])
def test_or_what_the_environment_says(monkeypatch, asked, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_threads() == (threads or available_cores())
    Hardware("cpu", threads=1).fabric()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", [-1, -300, 100_000, 2**70])
def test_a_number_of_threads_that_cannot_be_is_one_line(threads):
    with pytest.raises(UserError, match=f"threads must be 0 .for every core. to 1024, got {threads}"):
        Hardware("cpu", threads=threads).fabric()


def test_deterministic_algorithms_are_asked_of_torch_and_of_cublas(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        Hardware("cpu", threads=1).fabric()
        assert not torch.are_deterministic_algorithms_enabled()
        Hardware("cpu", threads=1, deterministic=True).fabric()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_accelerator_that_is_not_there_is_named():
    with pytest.raises(UserError, match="cannot use accelerator 'cuda'"):
        Hardware("cuda").fabric()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_is_that_of_the_weights(channels_last):
    model = Hardware(channels_last=channels_last).place(nn.Conv2d(3, 4, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert model.weight.is_contiguous() is not channels_last


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precision_leaves_the_weights_in_float32(precision):
    fabric = Hardware("cpu", precision, threads=1).fabric()
    model = fabric.setup_module(nn.Linear(2, 2))
    assert model(torch.ones(1, 2)).dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_mixed_precision_computes_in_bfloat16_but_never_rounds_the_pixels():
    seen = []
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    model[1].register_forward_hook(lambda module, _, output: seen.append(output.dtype))
    images = torch.tensor([[0.7, 0.7 + 1e-4]], requires_grad=True)
    logits = Hardware("cpu", "bf16-mixed", threads=1).fabric().setup_module(model)(images)
    assert torch.equal(seen[0], images)
    assert seen[1] == torch.bfloat16
    (gradient,) = torch.autograd.grad(logits.sum(), images)  # what an attack does
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by glibc's settings")
def test_memory_that_is_freed_is_used_again_without_new_pages():
    resource = pytest.importorskip("resource")
    Hardware("cpu", threads=1).fabric()

    def pages_of_one_tensor() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(50 * 2**20, dtype=torch.uint8).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for _ in range(3):  # an aligned block needs a little more room than the one before it left
        pages_of_one_tensor()
    assert pages_of_one_tensor() < 50 * 2**20 / 4096 / 10
