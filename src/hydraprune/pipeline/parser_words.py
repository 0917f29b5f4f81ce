"""What the argument parser says of a mistake, as one line of ours: which value, what came, what would work."""

import difflib
import pydoc
import re
import typing
from collections.abc import Collection
from typing import Any

from jsonargparse import ArgumentParser

_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "tuple": "a list"}

_UNKNOWN = re.compile(
    r"(?:(?P<key>\S+): '(?P<kind>[^']+)': )?unrecognized arguments: (?P<words>.+)"
    r"|(?P<owner>\S+): '(?P<chosen>[^']+)': Option '(?P<setting>.+)' is not accepted"
    r"|Group '(?P<group>.+)' does not accept option '(?P<member>.+)'"
)


def one_line(error: Exception, parser: ArgumentParser) -> str:
    """Fold the parser's indented, multi-line message into one line of ours.

    `objective.attack.eps: '-1' is not a radius: …`, `pretrain.epochs: expected a whole number, got 'ten'`,
    `unknown option '--prune.sparsty' (did you mean '--prune.sparsity'?)`.

    Args:
        error: the parser's.
        parser: that raised it; it knows which options there are.
    """
    message = re.sub(r":?\s*\n\s*", ": ", str(error).strip())
    # An option below one that has no parts, or none yet: `--seed.x 3`.
    if part := re.match(r"""Parser key "([^"]+)": .*NestedArg\(key='([^']+)'""", message):
        return f"--{part[1]} as it is has no part '{part[2]}'"
    message = re.sub(
        r"""Parser key "([^"]+)": Problem with given class_path '[^']+': Parser key \"""", r'Parser key "\1.', message
    )
    message = re.sub(r'Parser key "([^"]+)"', r"\1", message)
    message = re.sub(r"Problem with given class_path ('[^']+')", r"\1", message)
    message = re.sub(r"Not of type \w+: ", "", message)
    message = re.sub(r"argument (--\S+): expected one argument", r"\1 needs a value, such as \1=VALUE", message)
    message = re.sub(
        r"Does not validate against any of the Union subtypes: .*?Errors: - (.*?): - Expected.*?Given value: (.*)",
        lambda found: f"{found[1]}. Got value: {found[2]}" if found[1].startswith("Expected a") else found[1],
        message,
    )
    message = re.sub(
        r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])\. Got value: (.*)",
        lambda found: f"expected {_PLAIN.get(found[1], found[1]) if found[1] else _any(found[2])}, got '{found[3]}'",
        message,
    )
    unknown = _UNKNOWN.fullmatch(message)
    return message if unknown is None else "; ".join(_unknown(unknown, parser))


def named(kind: Any) -> str:
    """Return what a value of this type is, in plain words."""
    if typing.get_origin(kind) is typing.Literal:
        return _any(", ".join(map(str, typing.get_args(kind))))
    plain = typing.get_origin(kind) or kind
    written = kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")
    return _PLAIN.get(getattr(plain, "__name__", ""), written)


def _any(choices: str) -> str:
    return "one of " + choices.replace("'", "")


def _unknown(found: re.Match[str], parser: ArgumentParser) -> list[str]:
    """Return a complaint for each word that no option takes."""
    owner, chosen = found["key"] or found["owner"], found["kind"] or found["chosen"]
    if chosen is not None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(typing.cast("type", pydoc.locate(chosen)))
    known = _options(parser)
    if found["words"] is None:
        words = [f"--{found['setting'] or found['group'] + '.' + found['member']}"]
    else:
        words = found["words"].split()
    options = [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]
    before = f"--{owner}." if owner else "--"
    return [f"unknown option '{before}{option}' ({_hint(option, known, before)})" for option in options] or [
        f"unexpected '{words[0]}'; a value comes behind its --OPTION"
    ]


def _options(parser: ArgumentParser) -> set[str]:
    """Return every option of a parser without its dashes, those of alternatives as their defaults have them."""
    keys = parser.get_defaults().keys()
    return {key.replace(".init_args.", ".").removesuffix(".class_path") for key in keys}


def _hint(option: str, known: Collection[str], before: str) -> str:
    """Return the nearest known option, part by part as in a file; where none is near, all there are."""
    way = ""
    for part in option.split("."):
        here = sorted({one.removeprefix(way).split(".")[0] for one in known if one.startswith(way)})
        if part not in here:
            near = difflib.get_close_matches(part, here, n=1)
            if not near:
                return f"known: {', '.join(before + way + one for one in here) or 'none'}"
            whole = way + near[0] + option.removeprefix(way + part)
            return f"did you mean '{before}{whole if whole in known else way + near[0]}'?"
        way += f"{part}."
    return "known: none"
