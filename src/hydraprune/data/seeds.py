"""Random numbers as a pure function of what they are for: nothing has to be saved to draw them again."""

import hashlib

import torch


def derived_generator(*purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded by the SHA-256 of `purpose`, such as ("order", seed, epoch).

    Neighbouring seeds or epochs give unrelated streams. The generator lives on the CPU on every machine: what is
    drawn from it does not depend on the device that the images are on.
    """
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
