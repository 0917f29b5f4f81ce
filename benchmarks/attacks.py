"""Milliseconds of one step of an attack: logits and the gradient of a loss towards the images, weights constant.

- float32, bfloat16: torch on the dense network, NHWC, without gradients of weights.
- a sparsity: the sparse runtime's kernels (`export.SparseGradients`), that share of each layer removed at random,
  always in float32.

Where the kernels become faster than torch is what `engine/sparse_attacks.py` is told. All ways take turns, each in a
process of its own (`turns.py`).

    python benchmarks/attacks.py
    python benchmarks/attacks.py --networks vgg16_bn --sparsities 0.5 0.9 0.99 --batch 64 --threads 1 --json
"""

import argparse
import json
import os
import statistics

import torch
from torch.nn import functional as F
from turns import Contender, Work, take_turns

from hydraprune import models, sparsity
from hydraprune.export import SparseGradients
from hydraprune.runtime import available_kernels


def step(way: str, name: str, batch: int, steps: int) -> Work:
    """Return `steps` steps on one batch."""
    shape = models.MODELS[name].usual_shape
    torch.manual_seed(0)
    network = models.create(name, 10, shape).to(memory_format=torch.channels_last)
    images = torch.rand(batch, *shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    network.train()(images)  # moves the statistics of BatchNorm
    attacked = network.eval().requires_grad_(False)
    if way.endswith("%"):
        sparsity.prune(network, sparsity.Random(), sparsity.Uniform(), float(way[:-1]) / 100)
        attacked = SparseGradients(sparsity.bake(network).eval().requires_grad_(False), shape)

    def work() -> None:
        for _ in range(steps):
            moved = images.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "bfloat16"):
                logits = attacked(moved)
            torch.autograd.grad(F.cross_entropy(logits.float(), labels), moved)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    networks = ["vgg16_bn", "wrn_28_4", "resnet18", "cnn_large", "cnn_small", "cnn_tiny"]
    parser.add_argument("--networks", nargs="+", default=networks, help="of `hydraprune models`")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's own choice")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    ways = ["float32", "bfloat16", *(f"{100 * share:g} %" for share in options.sparsities)]
    rows = []
    for name in options.networks:
        contenders = {way: Contender(True, step, way, name, options.batch, options.steps) for way in ways}
        taken = take_turns(contenders, options.repeats)
        found = {way: 1000 * statistics.median(times) / options.steps for way, times in taken.items()}
        rows.append({"network": name, "batch": options.batch, "milliseconds": found})
        if not options.json:
            print(f"{name:<10}", *(f"{way} {value:.1f}  " for way, value in found.items()), flush=True)
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": available_kernels()[0],
    }
    print(json.dumps({"machine": machine, "rows": rows}) if options.json else machine)


if __name__ == "__main__":
    main()
