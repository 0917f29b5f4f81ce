"""README.md of a model folder: YAML front matter as model hubs read it, then the card for people."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from hydraprune.reports.checked import clean
from hydraprune.reports.markdown import escape, fenced
from hydraprune.reports.wording import NOTHING, delivered_percent, file_size, percent, ratio

_HUB_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
    "imagenet": "ILSVRC/imagenet-1k",
}
_TAGS = ("hydraprune", "adversarial-robustness", "pruning", "sparsity", "compact")
_FILES = {
    "network.hp": "the compact network, for hydraprune.runtime and hydraprune.export",
    "model.safetensors": "the same weights as a dense state dict, for any PyTorch code",
    "card.json": "all of this and more, for programs",
    "recipe.yaml": "the recipe: `hydraprune run recipe.yaml` makes the network anew",
}


def render_model_card(card: Mapping[str, Any], runs: bool) -> str:
    """Return README.md of a network.

    Args:
        card: as `pipeline.evaluated_network` makes it.
        runs: whether the sparse runtime can compute the network, or PyTorch only.
    """
    card = _on_one_line_each(card)
    front = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        f"# {escape(card['name'])}",
        escape(_summary(card)),
        "## Numbers",
        _table(card),
        escape(f"Measured on {card['data']['measured_on']} of {card['data']['name']}."),
        "\n".join(_meanings(card)),
        "## Threat model",
        escape(f"{card['threat']['norm']} ball of radius ε = {card['threat']['eps']}, pixels in [0, 1]."),
        "## Use",
        f"Input: {escape(card['input'])}. Classes: {escape(', '.join(card['class_names']))}.",
        fenced(_RUNTIME if runs else _TORCH, "python"),
        "## Limits",
        "\n".join(f"- {escape(sentence)}" for sentence in [*card["warnings"], *card["limits"]]),
        "## How it was made",
        fenced(card["command"], "sh"),
        "\n".join(f"- {escape(key)}: {escape(str(value))}" for key, value in _origin(card)),
        "## Files",
        "\n".join(f"- `{name}`: {what}" for name, what in _FILES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _on_one_line_each(value: Any) -> Any:
    """Return a card whose texts, names given by users among them, cannot end a line of the page or of its YAML."""
    if isinstance(value, Mapping):
        return {key: _on_one_line_each(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_on_one_line_each(item) for item in value]
    return clean(value) if isinstance(value, str) else value


_RUNTIME = """from hydraprune import runtime
session = runtime.load("network.hp")
logits = session(images)  # NumPy in, NumPy out"""
_TORCH = """from pathlib import Path
from hydraprune.export import load_compact
model = load_compact(Path("network.hp"), module).model  # module: an untrained one of the same class"""


def _front_matter(card: Mapping[str, Any]) -> dict[str, Any]:
    data = card["data"]["name"]
    dataset = _HUB_NAMES.get(data, data)
    task = {"type": "image-classification", "name": "Image Classification"}
    result = {
        "task": task,
        "dataset": {"type": dataset, "name": data, "split": "test"},
        "metrics": [_metric(number) for number in card["numbers"]],
    }
    return {
        "license": card["license"],
        "library_name": "hydraprune",
        "pipeline_tag": task["type"],
        "tags": [*_TAGS, card["architecture"]["name"]],
        "datasets": [dataset],
        "metrics": ["accuracy"],
        "model-index": [{"name": card["name"], "results": [result]}],
    }


def _metric(number: Mapping[str, Any]) -> dict[str, Any]:
    metric = {"type": "accuracy", "value": number["value"], "name": _title(number)}
    return metric | {"args": dict(number["protocol"]) | {"n": number["n"]}}


def _title(number: Mapping[str, Any]) -> str:
    """Return `Robust accuracy (pgd50x10, linf, ε = 0.1)`; benign accuracy stands alone."""
    name, protocol = number["name"].replace("_", " ").capitalize(), number["protocol"]
    how = protocol.get("attack") or protocol.get("method")
    return f"{name} ({how}, {protocol['norm']}, ε = {protocol['eps_text']})" if how else name


def _summary(card: Mapping[str, Any]) -> str:
    pruning = card["pruning"]
    smaller = ratio(card["dense_size_bytes"] / card["size_bytes"])
    removed, left = delivered_percent(card["sparsity_delivered"]), f"{card['weights_kept']:,}"
    work = ""
    if "multiply_adds_kept" in card:
        work = f" One image takes {card['multiply_adds_kept']:,} of {card['multiply_adds_total']:,} multiply-adds."
    return (
        f"{card['architecture']['name']} for {card['data']['name']}, pruned by {pruning['criterion']} with the"
        f" allocation {pruning['allocation']}: {removed} % of its {card['weights_total']:,} prunable weights are"
        f" removed, {left} are left.{work} The compact file has {file_size(card['size_bytes'])}, the dense one"
        f" {file_size(card['dense_size_bytes'])} ({smaller})."
    )


def _table(card: Mapping[str, Any]) -> str:
    lines = ["| number | % | 95 % interval | test images | of the dense network's, % |", "|---|---:|---|---:|---:|"]
    for number in card["numbers"]:
        interval = number["confidence_interval"]
        between = f"{percent(interval[0])} to {percent(interval[1])}" if interval else NOTHING
        kept = percent(card["preserved"].get(number["name"].removesuffix("_accuracy")))
        cells = (escape(_title(number)), percent(number["value"], 2), between, f"{number['n']:,}", kept)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _meanings(card: Mapping[str, Any]) -> Iterator[str]:
    for number in card["numbers"]:
        settings = (
            f"{key.replace('_', ' ')} {value}" for key, value in number["protocol"].items() if key != "eps_text"
        )
        protocol = f". Protocol: {', '.join(settings)}" if number["protocol"]["name"] != "none" else ""
        yield f"- {escape(number['name'].replace('_', ' ').capitalize())}: {escape(number['means'] + protocol)}."


def _origin(card: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "recipe", f"{card['recipe']['name']}, seed {card['pruning']['seed']}"
    yield "epochs", ", ".join(f"{count} {stage}" for stage, count in card["epochs"].items())
    yield "training time", f"{card['seconds_train']:.0f} s"
    for key in ("commit", "hydraprune", "torch", "processor", "device", "threads", "dtype"):
        yield key, card["provenance"].get(key)
