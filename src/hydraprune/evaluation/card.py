"""A model card in the form of RobustBench's `model_info/DATASET/THREAT/NAME.json` (arXiv 2010.09670)."""

from collections.abc import Sequence

from hydraprune.evaluation.outcome import Empirical
from hydraprune.evaluation.protocol import AttackProtocol, AutoAttack

_THREATS = {"linf": "Linf", "l2": "L2"}


def model_card(
    measured: Empirical,
    protocol: AttackProtocol,
    *,
    name: str,
    dataset: str,
    architecture: str,
    population: int,
    additional_data: bool | None,
    link: str = "",
    authors: str = "",
    venue: str = "",
) -> dict[str, object]:
    """Return the card. Accuracies are per cent as text with two digits, as RobustBench writes them.

    `autoattack_acc` is there only when the standard AutoAttack was run; what another attack measured is `reported`
    alone. `threat_model`, `attack`, `n` and `warnings` are ours: RobustBench says the first by the folder and wants
    all test images.

    Args:
        measured: the outcome.
        protocol: that it was measured with.
        name: title of the entry.
        dataset: such as cifar10.
        architecture: such as WideResNet-28-4.
        population: test images that there are.
        additional_data: whether training saw other images than the data set's; None where that is not known.
        link, authors, venue: of the publication, for the user to fill in.
    """
    norm, eps = protocol.threat
    n = len(measured.benign)
    robust = _percent(measured.robust_accuracy)
    standard = type(protocol) is AutoAttack
    footnote: Sequence[str] = [
        *([] if standard else [f"robust accuracy is under {protocol.name}, not AutoAttack"]),
        *([] if n == population else [f"measured on the first {n} of {population} test images"]),
    ]
    return {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": venue,
        "architecture": architecture,
        "eps": eps.text,
        "clean_acc": _percent(measured.benign_accuracy),
        "reported": robust,
        **({"autoattack_acc": robust} if standard else {}),
        **({"footnote": "; ".join(footnote)} if footnote else {}),
        "unreliable": bool(measured.warnings),
        "threat_model": _THREATS[norm],
        "attack": protocol.name,
        "n": n,
        "warnings": list(measured.warnings),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
