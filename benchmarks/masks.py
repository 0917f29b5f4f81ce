"""Milliseconds of one mask of the k largest of n scores: ours, and by selecting from all of them.

    python benchmarks/masks.py

The sizes are those of cnn_small, cnn_large and VGG-16. Both take turns; the least of the repetitions counts, and the
masks are compared.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hydraprune.sparsity import kept_count, top_mask

SIZES = (166_000, 2_400_000, 15_000_000)
SPARSITIES = (0.5, 0.9, 0.95, 0.99, 0.999)


def from_all(scores: Tensor, keep: int) -> Tensor:
    """Select the threshold from all scores; ties in order of index."""
    threshold = torch.kthvalue(scores, len(scores) - keep + 1).values
    mask = scores > threshold
    mask[torch.nonzero(scores == threshold).squeeze(1)[: keep - int(mask.sum())]] = True
    return mask


def timed(select: Callable[[Tensor, int], Tensor], scores: Tensor, keep: int) -> tuple[float, Tensor]:
    """Return milliseconds and the mask."""
    began = time.perf_counter()
    mask = select(scores, keep)
    return 1e3 * (time.perf_counter() - began), mask


def main() -> None:
    """Print a line for each size and sparsity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for size in SIZES:
        scores = torch.randn(size).abs()
        for sparsity in SPARSITIES:
            keep = kept_count(sparsity, size)
            best = [float("inf"), float("inf")]
            for _ in range(options.repeats):
                ours, mask = timed(top_mask, scores, keep)
                plain, expected = timed(from_all, scores, keep)
                assert torch.equal(mask, expected)
                best = [min(best[0], ours), min(best[1], plain)]
            ours, plain = best
            print(
                f"{size:>10,} at {100 * sparsity:g} %: {ours:.1f} ms, from all {plain:.1f} ms ({plain / ours:.1f} x)"
            )


if __name__ == "__main__":
    main()
