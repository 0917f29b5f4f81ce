"""Bytes of compact files: a network at random masks, by sparsity and by how kept weights are stored.

    python benchmarks/size.py [--json]

The bound on the index part is the entropy of the masks: for each masked tensor of n weights of which k are kept,
n · H(k / n) bits, H the binary entropy. The index part is what the gap codes take in the file.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from runtime import SHAPE, network

from hydraprune.export import Architecture, dense_size_bytes, save_compact
from hydraprune.runtime import PRECISIONS, inspect, read
from hydraprune.runtime.container import open_container


def entropy_bytes(size: int, kept: int) -> float:
    share = kept / size
    return 0.0 if share in (0, 1) else -size * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8


def measure(name: str, sparsity: float) -> list[dict[str, Any]]:
    model, masks = network(name, sparsity)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for values in PRECISIONS:
            path = Path(folder) / values
            size = save_compact(path, model, masks, Architecture(name, 10, SHAPE), {}, values)
            with open_container(path) as file:
                index = sum(file.stored_bytes(part) for part in file.names if part.endswith(".gaps"))
            bound = sum(entropy_bytes(mask.size, int(mask.sum())) for mask in read(path).masks.values())
            rows.append(
                {
                    "network": name,
                    "sparsity": sparsity,
                    "values": values,
                    "bytes": size,
                    "dense_bytes": dense_size_bytes(model),
                    "index_bytes": index,
                    "entropy_bytes": bound,
                    "tensors": len(inspect(path).tensors),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16_bn"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95, 0.99])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    rows = [row for name in options.networks for sparsity in options.sparsities for row in measure(name, sparsity)]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['network']} {row['sparsity']:g} {row['values']}: {row['bytes'] / 1e6:.3f} MB, "
            f"{row['dense_bytes'] / row['bytes']:.1f}x smaller than dense, "
            f"index {row['index_bytes'] / row['entropy_bytes']:.3f} of the entropy of the masks"
        )


if __name__ == "__main__":
    main()
