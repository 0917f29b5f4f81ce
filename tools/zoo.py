"""Put a network that a finished run evaluated into the zoo that ships with the package.

    python tools/zoo.py runs/digits
    python tools/zoo.py runs/mnist/artefacts/hydra-global-0.99-s0.hp --name mnist-cnn_small-99-certified

The file and the card are written from the run's own record; commit both.
"""

import argparse
import sys
from pathlib import Path

from hydraprune import pipeline
from hydraprune.errors import HydrapruneError
from hydraprune.runtime import zoo


def main() -> int:
    """Read the arguments and write the entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="a run folder with one compact network, or such a file in one")
    parser.add_argument("--name", help="of the entry (default: DATA-NETWORK-SPARSITY)")
    parser.add_argument("--folder", type=Path, default=zoo.FOLDER, help="of the zoo (default: %(default)s)")
    options = parser.parse_args()
    try:
        name, card = pipeline.add_to_zoo(options.network, options.name, options.folder)
    except HydrapruneError as error:
        print(f"zoo: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.folder / name}.hp  {card['size_bytes']:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
