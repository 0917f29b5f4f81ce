"""How a network comes into the zoo: a finished run's file and card, under a name of its own."""

import re
import tempfile
from pathlib import Path
from typing import Any

from hydraprune import export, io, runtime
from hydraprune.errors import UserError
from hydraprune.pipeline.card import evaluated_network
from hydraprune.pipeline.portable import portable_description
from hydraprune.runtime import zoo

LICENSE = "apache-2.0"
LARGEST_BYTES = 1_000_000


def add_to_zoo(place: Path, name: str | None = None, folder: Path = zoo.FOLDER) -> tuple[str, dict[str, Any]]:
    """Write NAME.hp and NAME.json of a network that a run evaluated; return the name and the card.

    The weights are the run's to the bit, so that its numbers are the entry's; paths of the machine are left out.

    Args:
        place: a run folder with one compact network, or a compact file in a run folder.
        name: of the entry; by default DATA-NETWORK-SPARSITY, such as digits-cnn_tiny-99.
        folder: of the zoo.

    Raises:
        UserError: the network was not evaluated, is none of hydraprune's architectures, is too large for the zoo or
            cannot run there, or `name` is not a name.
    """
    evaluated = evaluated_network(place, LICENSE)
    card = evaluated.card
    name = name or f"{card['data']['name']}-{card['architecture']['name']}-{100 * card['sparsity']:.6g}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise UserError(f"a name of the zoo has small letters, digits and - _ . only, not '{name}'")
    network = export.load_compact(evaluated.artefact)
    said = portable_description(network.description) | {"name": name}
    io.make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as workplace:
        made = Path(workplace) / "network.hp"
        size_bytes = export.save_compact(made, network.model, network.masks, network.architecture, said)
        if size_bytes > LARGEST_BYTES:
            raise UserError(f"'{evaluated.artefact}' has {size_bytes:,} bytes; the zoo takes up to {LARGEST_BYTES:,}")
        runtime.load(made)
        card |= {"name": name, "size_bytes": size_bytes, "sha256": io.file_hash(made)}
        # The card last: a network without one is not in the zoo.
        io.write_bytes(folder / f"{name}.hp", made.read_bytes())
    io.write_json(folder / f"{name}.json", card)
    return name, card
