"""`certify`: what is proven of a network, image by image."""

import dataclasses
import json
import time
from collections.abc import Sequence

from hydraprune.cli.certify_bounds import Bounds
from hydraprune.cli.certify_options import Certifier, Options
from hydraprune.cli.certify_smoothing import Smoothing
from hydraprune.cli.options import parse
from hydraprune.cli.output import say, show
from hydraprune.console import TerminalProgress
from hydraprune.engine import Hardware, graceful
from hydraprune.errors import UserError
from hydraprune.evaluation import CERTIFIERS

METHODS: dict[str, type[Certifier]] = {"smoothing": Smoothing, **dict.fromkeys(CERTIFIERS, Bounds)}


def command(name: str, words: Sequence[str]) -> int:
    """Certify and print."""
    options = parse(Options, f"hydraprune {name}", words)
    method = options.method or ("smoothing" if options.eps is None else "cascade")
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    # All that can be refused without the network is refused before it is loaded.
    certifier = METHODS[method](dataclasses.replace(options, method=method))
    began = time.monotonic()
    fabric = Hardware(accelerator=options.accelerator, threads=options.threads).fabric()
    target = options.open()
    with graceful(), TerminalProgress() as progress:
        result = certifier.run(target, fabric, progress)
    result = {"target": target.name, "data": target.dataset.name, "method": method, **result}
    result["seconds"] = round(time.monotonic() - began, 3)
    if options.json:
        say(json.dumps(result))
    else:
        lines = {"network": target.name, "data": f"{target.dataset.name}, {result['n_images']} test images"}
        show(lines | certifier.table(result) | {"seconds": f"{result['seconds']:.1f}"})
    certifier.clean()
    return 0
