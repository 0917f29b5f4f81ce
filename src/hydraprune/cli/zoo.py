"""`zoo`: the compact networks that come with the package, without the training stack."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from hydraprune.cli.output import percent, say, show
from hydraprune.errors import UserError
from hydraprune.runtime import zoo

USAGE = """usage: hydraprune zoo list [--json]
       hydraprune zoo show NAME [--json]

The compact networks that come with hydraprune, and the card of one: what it is, every number with its protocol, its
limits. Any command that takes a TARGET takes zoo:NAME, and so does hydraprune.runtime.load.

options:
  --json    print one JSON object on stdout instead of a table"""

_LISTED = ("license", "data", "architecture", "threat", "sparsity", "weights_kept", "size_bytes", "numbers")


def command(name: str, words: Sequence[str]) -> int:
    """List, or show one card."""
    if {"--help", "-h"} & set(words):
        say(USAGE)
        raise SystemExit(0)
    plain = [word for word in words if word != "--json"]
    option = next((word for word in plain if word.startswith("-")), None)
    if option is not None:
        raise UserError(f"{name} does not know the option '{option}'; it knows --json")
    match plain:
        case [] | ["list"]:
            _list("--json" in words)
        case ["show", one]:
            _show(one.removeprefix(zoo.PREFIX), "--json" in words)
        case ["show"]:
            raise UserError(f"say which network to show: {', '.join(zoo.names())}")
        case _:
            raise UserError(f"{name} takes 'list' or 'show NAME', not '{' '.join(plain)}'")
    return 0


def _list(as_json: bool) -> None:
    cards = {name: zoo.card(name) for name in zoo.names()}
    if as_json:
        say(json.dumps([{"name": name} | {key: card[key] for key in _LISTED} for name, card in cards.items()]))
        return
    for name, card in cards.items():
        numbers = ", ".join(f"{_words(number['name'])} {percent(number['value'])}" for number in card["numbers"])
        threat = f"{card['threat']['norm']} {card['threat']['eps']}"
        say(f"{name}  {card['size_bytes']:,} bytes  {card['data']['name']}, {threat}: {numbers}")


def _show(name: str, as_json: bool) -> None:
    card = zoo.card(name)
    if as_json:
        say(json.dumps(card))
        return
    shrunk = card["dense_size_bytes"] / card["size_bytes"]
    threat, architecture, pruning = card["threat"], card["architecture"], card["pruning"]
    weights = f"{card['weights_kept']:,} of {card['weights_total']:,} kept"
    lines = {
        "network": f"zoo:{name}, {architecture['name']} for {card['data']['name']}",
        "input": card["input"],
        "threat model": f"{threat['norm']}, eps {threat['eps']}",
        "pruned": f"{pruning['criterion']} / {pruning['allocation']}, seed {pruning['seed']}",
        "sparsity": f"{percent(card['sparsity_delivered'])}, {weights}",
        **_multiply_adds(card),
        "bytes": f"{card['size_bytes']:,}, {shrunk:.0f} times fewer than dense",
    }
    lines |= {_words(number["name"]): _with_protocol(number) for number in card["numbers"]}
    lines |= {
        "measured on": card["data"]["measured_on"],
        "made by": card["command"],
        "commit": str(card["provenance"]["commit"]),
        "license": card["license"],
    }
    show(lines)
    for limit in [*card["warnings"], *card["limits"]]:
        say(textwrap.fill(limit, 110, initial_indent="- ", subsequent_indent="  "))


def _multiply_adds(card: dict[str, Any]) -> dict[str, str]:
    """Return the line about them; none for a card that does not know."""
    if "multiply_adds_kept" not in card:
        return {}
    return {"multiply-adds": f"{card['multiply_adds_kept']:,} of {card['multiply_adds_total']:,} an image"}


def _with_protocol(number: dict[str, Any]) -> str:
    """Return `83.9 %, pgd50x10, linf, eps 0.1`, and a 95 % interval where there is one."""
    interval = number["confidence_interval"]
    shown = percent(number["value"])
    if interval is not None:
        shown += f" (95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    protocol = number["protocol"]
    how = protocol.get("attack") or protocol.get("method")
    return f"{shown}, {how}, {protocol['norm']}, eps {protocol['eps_text']}" if how else shown


def _words(key: str) -> str:
    return key.replace("_", " ")
