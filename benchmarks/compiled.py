"""Seconds of one TRADES-10 update of the score search, as it is and through torch.compile (`hardware.compile`).

Loss and gradient, in NHWC with masks at 99 %, without the optimiser's step and the new masks, which are the same for
both. The two take turns; a line says the median and how long the first update took, compiling counted in.

    python benchmarks/compiled.py
    python benchmarks/compiled.py --networks vgg16_bn --batch 64 --repeats 5 --threads 1
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from hydraprune import models, sparsity
from hydraprune.attacks import PGD, Eps
from hydraprune.data import Batch
from hydraprune.engine import Hardware
from hydraprune.engine.compiled import Compiled
from hydraprune.objectives import StageProgress, Trades

OBJECTIVE = Trades(attack=PGD("linf", Eps("8/255"), 10, Eps("2/255")))


def update(name: str, batch: Batch, wrap: Callable[[nn.Module], nn.Module], bf16: bool) -> Callable[[], float]:
    """Return what makes one update of the network that `wrap` runs and says how many seconds it took."""
    fabric = Hardware("cpu", "bf16-mixed" if bf16 else "32-true", threads=torch.get_num_threads()).fabric()
    torch.manual_seed(0)
    network = models.create(name, 10, (3, 32, 32)).to(memory_format=torch.channels_last)
    masks = sparsity.prune(network, sparsity.Hydra(), sparsity.Uniform(), 0.99)
    network.requires_grad_(False)
    for scores in masks.scores():
        scores.requires_grad_()
    model = fabric.setup_module(wrap(network)).train()

    def once() -> float:
        began = time.perf_counter()
        with masks.cached():
            (loss,) = OBJECTIVE.losses(model, batch, StageProgress(0, 1, 1))
            loss.total.backward()
        return time.perf_counter() - began

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["cnn_small", "wrn_16_1", "vgg16_bn"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="both in bfloat16, where the CPU has instructions for it")
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__} on {torch.get_num_threads()} threads")
    images = torch.rand(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(10, (options.batch,)))
    for name in options.networks:
        wraps: dict[str, Callable[[nn.Module], nn.Module]] = {"as it is": lambda one: one, "compiled": Compiled}
        ways = {way: update(name, batch, wrap, options.bf16) for way, wrap in wraps.items()}
        first = {way: work() for way, work in ways.items()}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, work in ways.items():
                taken[way].append(work())
        middle = {way: statistics.median(times) for way, times in taken.items()}
        for way, value in middle.items():
            print(
                f"{name:<10} {way:<9} {value:8.3f} s  {middle['as it is'] / value:5.2f} ×  first {first[way]:6.1f} s"
            )


if __name__ == "__main__":
    main()
