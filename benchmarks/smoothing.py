"""Noisy samples per second: certification as it is here against the plain loop of Cohen et al. (arXiv 1902.02918).

Both ask the same network about the same image of 3 × 32 × 32 pixels under Gaussian noise, and count the answers.

- plain: one image at a time, 1,000 copies of it with torch.randn, float32, NCHW.
- ours: `certify` with its defaults: noise on the grid of pixels, 64 rows at once, NHWC; and with bf16, whose
  certificate is that of the network in bf16.

A line says the median of rounds in which all ways take turns, each in a process of its own (`turns.py`). Adaptive
sampling is not in it: it takes fewer samples, not faster ones (docs/smoothing.md has its figures).

    python benchmarks/smoothing.py
    python benchmarks/smoothing.py --networks vgg16_bn --rounds 5 --threads 1 --batch-sizes 16 32 64
    python benchmarks/smoothing.py --noise      only the noise, in nanoseconds a pixel
    python benchmarks/smoothing.py --sparse     a certificate of 10,000 samples on the sparse runtime, VGG16 at 99 %
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from turns import Contender, Work, seconds, take_turns

from hydraprune import models, runtime
from hydraprune.data import Split
from hydraprune.evaluation import smoothing
from hydraprune.evaluation.smoothing import Certification, Compute, GridNoise
from hydraprune.export import Architecture, save_compact

SHAPE = (3, 32, 32)
SIGMA = 0.25


def plain(network: nn.Module, image: torch.Tensor, samples: int) -> None:
    """Count the classes of `samples` noisy copies, 1,000 at once, as the field's loop does."""
    counts = torch.zeros(10, dtype=torch.int64)
    with torch.no_grad():
        for begin in range(0, samples, 1000):
            batch = image.repeat((min(1000, samples - begin), 1, 1, 1))
            answers = network(batch + torch.randn_like(batch) * SIGMA).argmax(1)
            counts += torch.bincount(answers, minlength=10)


def plain_certificate(name: str, samples: int) -> Work:
    torch.manual_seed(0)
    network, image = models.create(name, 10, SHAPE).eval(), torch.rand(SHAPE)
    return lambda: plain(network, image, samples)


def our_certificate(name: str, samples: int, compute: Compute) -> Work:
    torch.manual_seed(0)
    network = models.create(name, 10, SHAPE).eval()
    split = Split(torch.randint(0, 256, (1, *SHAPE), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    certification = Certification(sigma=SIGMA, n=samples - 100)
    return lambda: smoothing.certify(network, split, certification, compute=compute)


def compare(name: str, samples: int, rounds: int, batch_sizes: list[int]) -> None:
    ways = {f"ours fp32, batch {size}": Compute(size) for size in batch_sizes} | {"ours bf16": Compute(bf16=True)}
    contenders = {"plain": Contender(False, plain_certificate, name, samples)}
    contenders |= {way: Contender(True, our_certificate, name, samples, compute) for way, compute in ways.items()}
    taken = take_turns(contenders, rounds)
    for way, times in taken.items():
        middle = statistics.median(times)
        ratio = statistics.median(taken["plain"]) / middle
        print(f"{name:<10} {way:<22} {samples / middle:>9.1f} samples/s  {ratio:5.2f} ×  (n = {rounds} rounds)")


def compare_noise(rounds: int) -> None:
    noise, pixels = GridNoise(SIGMA), 100 * 3 * 32 * 32
    ways: dict[str, Callable[[], object]] = {
        "torch.randn · sigma": lambda: torch.randn(100, *SHAPE) * SIGMA,
        "on the grid, exact": lambda: noise.draw((0, "benchmark"), SHAPE, 100),
    }
    for way, work in ways.items():
        work()
        taken = [seconds(work) / pixels * 1e9 for _ in range(10 * rounds)]
        print(f"{way:<22} {statistics.median(taken):6.1f} ns a pixel  (n = {10 * rounds})")


def certify_sparse(rounds: int) -> None:
    """Print the processor's seconds of a whole certificate of one image, and of the network in it; one thread."""
    torch.manual_seed(0)
    model, masks = models.create("vgg16_bn").eval(), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            masks[f"{path}.weight"] = torch.rand_like(module.weight) >= 0.99
            module.weight.data.mul_(masks[f"{path}.weight"] / 0.1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sparse.hp"
        save_compact(file, model, masks, Architecture("vgg16_bn", 10, SHAPE), {})
        session = runtime.load(file, threads=1)
    inside = 0.0

    def network(images: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        began = time.process_time()
        logits = torch.from_numpy(session(images.contiguous().numpy()))
        inside += time.process_time() - began
        return logits

    split = Split(torch.randint(0, 256, (1, *SHAPE), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    torch.set_num_threads(1)
    taken = []
    for _ in range(rounds):
        inside, began = 0.0, time.process_time()
        smoothing.certify(network, split, Certification(sigma=SIGMA, n=9900), compute=Compute(channels_last=False))
        taken.append((time.process_time() - began, inside))
    whole, part = (statistics.median(column) for column in zip(*taken, strict=True))
    print(
        f"vgg16_bn at 99 %, sparse runtime: {whole:.2f} s a certificate, {part:.2f} s in the network (n = {rounds})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["vgg16_bn", "wrn_28_4"])
    parser.add_argument("--samples", type=int, default=1000, help="in each measurement, n0 of 100 among them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's own choice")
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__} on {torch.get_num_threads()} threads")
    if options.sparse:
        certify_sparse(options.rounds)
        return
    compare_noise(options.rounds)
    for name in [] if options.noise else options.networks:
        compare(name, options.samples, options.rounds, options.batch_sizes)


if __name__ == "__main__":
    main()
