"""Numbers as text, and the sentences that every form of the report shares: verdict, facts, remarks."""

import math
from collections.abc import Iterable, Sequence

import yaml

from hydraprune.reports.aggregate import (
    Group,
    Spread,
    dense_of,
    ranking_at_highest_sparsity,
    smallest_that_keeps,
)
from hydraprune.reports.differences import LEVEL, Difference, Measure, difference
from hydraprune.reports.load import Evaluation, Results, Row, network_name

NOTHING = "–"
NEARLY_ALL = 0.95
UNFINISHED = "The run is not complete: more networks will come, and the verdict may change."
CERTIFIED = (
    "the share of test images that are classified rightly and proven to stay so in the whole ball, rounding "
    "included; a lower bound on the true robust accuracy"
)
EMPIRICAL_PROTOCOLS = frozenset({"pgd", "autoattack"})


def percent(value: Spread | float | None, digits: int = 1) -> str:
    """Return a share as per cent without the sign, `87.9 ± 1.2`; one seed has no ±, None is a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, Spread):
        spread = "" if value.std is None else f" ± {100 * value.std:.{digits}f}"
        return f"{100 * value.mean:.{digits}f}{spread}"
    return f"{100 * value:.{digits}f}"


def with_interval(share: float, interval: tuple[float, float] | None) -> str:
    """Return a share as per cent with its 95 % interval, if it has one: `87.90 [85.10, 90.20]`."""
    if interval is None:
        return percent(share, 2)
    return f"{percent(share, 2)} [{', '.join(percent(end, 2) for end in interval)}]"


def sparsity_percent(sparsity: float) -> str:
    """Return the sparsity asked for as per cent without the sign, as short as it was asked: `99`, `99.5`."""
    return f"{100 * sparsity:.6g}"


def delivered_percent(delivered: float) -> str:
    """Return the sparsity delivered as per cent, with two digits at least of what is left: `90.00`, `99.950`."""
    left = 1 - delivered
    digits = 2 if left <= 0 else max(2, 1 + math.ceil(-math.log10(100 * left) - 1e-9))
    return f"{100 * delivered:.{digits}f}"


def file_size(size_bytes: float) -> str:
    """Return bytes with three significant digits in decimal units: `4.32 kB` is 4,320 bytes."""
    value, units = size_bytes, iter(("kB", "MB", "GB"))
    unit = "B"
    while value >= 999.5 and (larger := next(units, None)):
        value, unit = value / 1000, larger
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} {unit}"


def ratio(value: float) -> str:
    """Return a ratio: `35×` and from 10 down one digit more, `3.4×`; infinite is a dash."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}×" if value >= 9.95 else f"{value:.1f}×"


def listed(words: Iterable[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


def seeds_text(groups: Sequence[Group]) -> str:
    """Return what the numbers are: `one seed`, `mean ± sample std of 3 seeds`, or of `2 to 3 seeds`."""
    counts = sorted({len(group.rows) for group in groups})
    if counts == [1]:
        return "one seed"
    return f"mean ± sample std of {counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} seeds"


def verdict(groups: Sequence[Group]) -> str:
    """Return the paragraph that opens the report, computed from the groups of one evaluation."""
    dense, ranked = dense_of(groups), ranking_at_highest_sparsity(groups)
    if not ranked:
        if dense is None:
            return "There is no network to report."
        return f"Only the dense network was evaluated: {_accuracies(dense)}. Nothing was pruned."
    best = ranked[0]
    sentences = [_best_at_highest(best, dense)]
    if len(ranked) > 1:
        sentences.append(_runner_up(best, ranked[1], len(ranked) - 1))
    enough = smallest_that_keeps(groups, NEARLY_ALL)
    if enough is not None and enough.sparsity < best.sparsity:
        sentences.append(
            f"The smallest network that keeps at least {100 * NEARLY_ALL:.0f} % of the robust accuracy is "
            f"{enough.network} at {sparsity_percent(enough.sparsity)} % sparsity, with {file_size(_bytes(enough))}."
        )
    return " ".join(sentences)


def _best_at_highest(best: Group, dense: Group | None) -> str:
    opening = f"At {sparsity_percent(best.sparsity)} % sparsity the best network ({best.network})"
    size = f"{file_size(_bytes(best))} instead of {file_size(best.over(lambda row: row.dense_size_bytes).mean)}"
    price = f"1/{best.byte_ratio:.3g} of the bytes ({size}; {_means(best)})"
    if best.preserved_robust is None:
        lost = "keeps no measurable share of robust accuracy, because the dense network has none"
        return f"{opening} {lost}; it has {_accuracies(best)}, at {price}."
    keeps = f"keeps {percent(best.preserved_robust.mean)} % of the dense network's robust accuracy"
    of = f" of {percent(dense.robust)} %" if dense else " %"
    absolute = f"{percent(best.robust)}{of}"
    if best.preserved_benign is not None:
        keeps_benign = f" and {percent(best.preserved_benign.mean)} % of its benign accuracy"
    else:
        keeps_benign = ""
    return f"{opening} {keeps} ({absolute}){keeps_benign}, at {price}."


def _runner_up(best: Group, second: Group, rivals: int) -> str:
    text = f"The next best at that sparsity, {second.network}, reaches {percent(second.robust)} % robust accuracy"
    found = difference(best, second)
    if found is None:
        gap = 100 * (best.robust.mean - second.robust.mean)
        seeds = "one seed each" if len(best.rows) == len(second.rows) == 1 else "fewer than two seeds in common"
        return f"{text}; with {seeds}, the difference of {gap:.1f} points may be chance."
    p = min(1.0, rivals * found.p_alone)  # the best of many was chosen by the very numbers that are compared
    corrected = f" after correction for {rivals} rivals" if rivals > 1 else ""
    noise = f"the noise of the seeds ({found.seeds} pairs, {p_value(p)}{corrected})"
    how = "exceeds" if found.better == best and p < LEVEL else "is within"
    return f"{text}; the difference of {100 * found.mean:.1f} points {how} {noise}."


def p_value(p: float) -> str:
    """Return `p = 0.016`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def noise_note(found: Sequence[Difference], measure: Measure = "robust") -> str:
    """Return what the table of differences is, and what came out; one sentence where there is nothing to compare."""
    if not found:
        return (
            "Nothing to tell apart from chance: that takes two networks of one sparsity that differ in one thing "
            "only (criterion, allocation, or what else was varied) and share two seeds or more."
        )
    sure = sum(one.verdict == "yes" for one in found)
    seeds = sorted({one.seeds for one in found})
    pairs = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{sure} of {len(found)} differences in {measure} accuracy exceed the noise of the seeds. Compared are "
        f"networks that differ in one thing only, paired over {pairs} seeds: the mean of the differences with its "
        f"95 % interval, and the p-value of a paired t-test after Holm's correction for {len(found)} "
        f"comparison{'s' * (len(found) > 1)}. “Alone” is one that would pass if it were the only comparison. Seeds "
        "change initialisation, order and attacks; the test images are always the same. With few seeds only large "
        "differences can pass: “no” does not mean that there is none."
    )


def _accuracies(group: Group) -> str:
    return f"{percent(group.benign)} % benign and {percent(group.robust)} % robust accuracy"


def _means(group: Group) -> str:
    return f"mean of {len(group.rows)} seeds" if len(group.rows) > 1 else "one seed"


def _bytes(group: Group) -> float:
    return group.over(lambda row: row.size_bytes).mean


def facts(results: Results, groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return what a reader must know to trust the table, as (term, sentence)."""
    evaluations = list(dict.fromkeys(group.evaluation for group in groups))
    found = []
    for i, evaluation in enumerate(evaluations):
        number = f" {i + 1}" if len(evaluations) > 1 else ""
        found.append((f"Threat model{number}", _threat_model(evaluation)))
        found.append((f"Attack{number}", _attack(evaluation)))
        found.append((f"Test images{number}", f"{evaluation.n:,}"))
    found.append(("What robust accuracy means", _guarantee(evaluations)))
    certified = dict.fromkeys(row.certified_by for row in results.rows if row.certified_by is not None)
    if certified:
        found.append(("Certified", f"{CERTIFIED} ({'; '.join(certified)})"))
    dense = dense_of(groups)
    if dense is not None:
        weights = f"{dense.rows[0].weights_total:,} prunable weights"
        size = file_size(dense.over(lambda row: row.dense_size_bytes).mean)
        found.append(("Dense network", f"{_accuracies(dense)}; {weights}; {size}"))
    found.append(("Seeds", _seeds(results.rows)))
    found.extend(_epochs(results.rows))
    found.append(("Smaller", "bytes of the dense network's file / bytes of the compact file"))
    found.append(
        (
            "Preserved",
            "accuracy of the pruned network / accuracy of the dense network of the same seed, then averaged",
        )
    )
    if any(row.robust_interval for row in results.rows):
        found.append(("[low, high]", "95 % Clopper–Pearson interval: these test images are a sample of all"))
    if any(len(group.rows) > 1 for group in groups):
        found.append(("±", "the sample standard deviation over seeds; not given for one seed"))
    return found


def _threat_model(evaluation: Evaluation) -> str:
    exact = repr(evaluation.eps)
    eps = evaluation.eps_text if evaluation.eps_text == exact else f"{evaluation.eps_text} (exactly {exact})"
    return f"{evaluation.norm} ball of radius ε = {eps}, pixels in [0, 1]"


def _attack(evaluation: Evaluation) -> str:
    details = [
        f"{key.replace('_', ' ')} {value}" for key, value in evaluation.protocol if key not in ("name", "norm", "eps")
    ]
    return f"{evaluation.attack}: {', '.join(details)}" if details else evaluation.attack


def _guarantee(evaluations: Sequence[Evaluation]) -> str:
    unknown = [e.attack for e in evaluations if dict(e.protocol).get("name") not in EMPIRICAL_PROTOCOLS]
    if unknown:
        return f"what {listed(unknown)} promises is not known to this report; see the documentation of that protocol"
    return (
        "the share of test images that are classified rightly and still are under this attack. It is empirical: an "
        "upper bound on the true robust accuracy, for a stronger attack may find more errors. It proves nothing."
    )


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))


def _epochs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """One fact for each budget of epochs, naming the networks that had it."""
    budgets: dict[tuple[tuple[str, int], ...], dict[str, None]] = {}
    for row in rows:
        if row.epochs:
            budgets.setdefault(row.epochs, {})[network_name(row.criterion, *row.variant)] = None
    texts = [
        f"{listed(names)}: {' + '.join(f'{n} {stage}' for stage, n in budget)}" for budget, names in budgets.items()
    ]
    return [("Epochs", "; ".join(texts))] if texts else []


def recipe_yaml(results: Results) -> str:
    """Return the recipe as YAML, keys in their own order."""
    return yaml.safe_dump(dict(results.recipe), sort_keys=False, allow_unicode=True)


def remarks(results: Results, groups: Sequence[Group]) -> list[str]:
    """Return the warnings of all rows, each once with how many networks had it, and what the report itself finds."""
    found: dict[str, list[Row]] = {}
    for row in results.rows:
        for warning in dict.fromkeys(row.warnings):
            found.setdefault(warning, []).append(row)
    unfinished = [] if results.complete else [UNFINISHED]
    sentences = unfinished + [f"{warning} ({_whose(rows, len(results.rows))})" for warning, rows in found.items()]
    seeds = {tuple(row.seed for row in group.rows) for group in groups}
    if len(seeds) > 1:
        sentences.append("Not every network was made with the same seeds; compare their means with care.")
    starved = dict.fromkeys(
        f"{row.network} at {sparsity_percent(row.sparsity)} %, seed {row.seed}"
        for row in results.rows
        if any(layer.kept == 0 for layer in row.layers)
    )
    if starved:
        sentences.append(f"A layer lost every weight in: {'; '.join(starved)}.")
    return sentences


def _whose(rows: Sequence[Row], total: int) -> str:
    if len(rows) == total:
        return "all networks" if total > 1 else "the only network"
    first = rows[0]
    name = f"{first.network} at {sparsity_percent(first.sparsity)} %, seed {first.seed}"
    return name if len(rows) == 1 else f"{len(rows)} of {total} networks, the first is {name}"
