"""Seconds of an optimiser update: ours with masks, ours without, and the original's loop written down plainly.

- ours: `hydraprune.engine.train`, NHWC, masks by threshold once for each update, clean logits once for each batch,
  attacks without removed weights (`--torch-attacks`: on torch).
- ours, dense: the same objective on the same network without masks: what pruning costs on top.
- plain: what the papers describe and their published code does, in `plain_loops.py`. pgd50 is an attack alone, of 50
  steps on one batch.

Contenders take turns, so that whatever else the machine does meets all of them, each in a process of its own: ours
keep the memory that they free (`Hardware.fabric`), a plain loop only with `--plain-keeps-memory`. `floor` is the time
that the convolutions and matrix products would take at the speed of one large float32 matrix product, measured here.
On bounds updates are those at the whole radius; those of crown-ibp keep their linear bounds, as while it rises.

    python benchmarks/training.py                                    TRADES-10, VGG16, prune and finetune
    python benchmarks/training.py --networks vgg16_bn wrn_28_4 --objectives trades stability --json
    python benchmarks/training.py --networks cnn_large --objectives ibp crown-ibp mixtrain --stages pretrain prune
    python benchmarks/training.py --objectives mixtrain --networks cnn_large --samples 1 --memory
    python benchmarks/training.py --profile                          where the time of ours goes
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import plain_loops
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from turns import Contender, Work, seconds, take_turns

from hydraprune import engine, models, sparsity
from hydraprune.attacks import PGD, Eps
from hydraprune.console import SilentProgress
from hydraprune.data import Batches, Split
from hydraprune.engine import SGD, Checkpointing, Hardware, Training, train
from hydraprune.objectives import IBP, CrownIBP, MixTrain, Objective, Stability, Trades
from hydraprune.paths import StagePaths

SHAPE, CLASSES = (3, 32, 32), 10
EPS = Eps("8/255")
OBJECTIVES: dict[str, Objective] = {
    "trades": Trades(attack=PGD("linf", EPS, 10, Eps("2/255"))),
    "stability": Stability(),
    "ibp": IBP(eps=Eps("2/255"), warm_up=0.0, ramp=0.0),
    "crown-ibp": CrownIBP(eps=Eps("2/255"), warm_up=0.0, ramp=0.0, beta_end=1.0),
    "mixtrain": MixTrain(eps=Eps("2/255"), probability=1.0),
}


def plain_update(name: str, objective: str, stage: str, split: Split, asked: float) -> Work:
    """Return one update of the plain loop; for pgd50 one attack."""
    network = plain_loops.network_for(name, SHAPE, CLASSES, stage, asked)
    if objective == "pgd50":
        network.eval().requires_grad_(False)
        return lambda: plain_loops.pgd(network, split.images / 255, split.labels, float(EPS))
    return plain_loops.update(network, objective, OBJECTIVES[objective], split)


def our_update(
    name: str,
    objective: str,
    stage: str,
    split: Split,
    asked: float | None,
    bf16: bool = False,
    updates: int = 1,
    torch_attacks: bool = False,
) -> Work:
    """Return `updates` updates of ours, of a network with masks or, with `asked` None, without."""
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed" if bf16 else "32-true"
    sparse = False if torch_attacks else None
    hardware = Hardware("cpu", precision, channels_last=True, threads=torch.get_num_threads(), sparse_attacks=sparse)
    fabric = hardware.fabric()
    network = hardware.place(models.create(name, CLASSES, SHAPE))
    learning, masks = [p for p in network.parameters() if p.requires_grad], None
    if asked is not None and stage != "pretrain":
        masks = sparsity.prune(network, sparsity.Hydra(), sparsity.Uniform(), asked)
        if stage == "prune":
            learning = masks.parameters()
        else:
            masks.fix()
    if objective == "pgd50":
        network = sparsity.bake(network).eval().requires_grad_(False)
        network = fabric.setup_module(hardware.attacks.on(network, SHAPE, fabric.device))
        images = (split.images / 255).contiguous(memory_format=torch.channels_last)
        attack = PGD("linf", EPS, 50, Eps("2/255"))
        return lambda: attack.perturb(
            network, images, lambda logits: F.cross_entropy(logits, split.labels, reduction="sum")
        )
    epoch = Split(split.images.repeat(updates, 1, 1, 1), split.labels.repeat(updates))
    batches = Batches(epoch, len(split), 0, channels_last=True)
    work = engine.Work(network, learning, OBJECTIVES[objective], batches, masks, None, 0, attacks=hardware.attacks)
    once = Training(epochs=1, batch_size=len(split), optimiser=SGD(lr=1e-3, weight_decay=1e-4))

    def update() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(work, once, fabric, StagePaths(Path(folder)), SilentProgress(), "", Checkpointing(None))

    return update


class Flops(TorchDispatchMode):
    """Counts the floating point operations of convolutions and matrix products, backward passes too."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def peak_flops() -> float:
    """Return the floating point operations a second of a large float32 matrix product on this machine."""
    one = torch.rand(2048, 2048)
    best = min(seconds(lambda: one @ one) for _ in range(10))
    return 2 * 2048**3 / best


def grown(work: Work) -> float:
    """Return by how many bytes the largest resident set of this process grows (Linux)."""

    def largest() -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    before = largest()
    work()
    return largest() - before


def flops(work: Work) -> float:
    with Flops() as counter:
        work()
    return counter.total


def contender(way: str, cell: tuple[str, str, str, Split], options: argparse.Namespace) -> Work:
    """Return one update of a contender, or `--updates` at once if it is one of ours."""
    use_options(options)
    name, objective, _, split = cell
    if way == "plain":
        return plain_update(*cell, options.sparsity)
    if way == "ours, dense":
        return our_update(name, objective, "pretrain", split, None, updates=updates_of(objective, options))
    bf16, updates = way == "ours, bf16", updates_of(objective, options)
    return our_update(*cell, options.sparsity, bf16, updates, options.torch_attacks)


def updates_of(objective: str, options: argparse.Namespace) -> int:
    return 1 if objective == "pgd50" else int(options.updates)


def measure(name: str, objective: str, stage: str, options: argparse.Namespace, peak: float) -> dict[str, object]:
    """Return one row: the median seconds of each contender, their ratios, and the floor of ours."""
    torch.manual_seed(0)
    split = Split(
        torch.randint(0, 256, (options.batch, *SHAPE), dtype=torch.uint8), torch.randint(CLASSES, (options.batch,))
    )
    common = (name, objective, stage, split)
    ways = ["ours"]
    ways += ["ours, dense"] if stage != "pretrain" and objective != "pgd50" else []
    ways += ["ours, bf16"] if options.bf16 else []
    ways += [] if options.no_plain else ["plain"]
    contenders = {
        way: Contender(way != "plain" or options.plain_keeps_memory, contender, way, common, options) for way in ways
    }
    updates = updates_of(objective, options)
    peaks = {way: int(one.ask(grown)) for way, one in contenders.items()} if options.memory else None
    floor = contenders["ours"].ask(flops) / updates / peak
    taken = take_turns(contenders, options.repeats)
    for way in taken:
        if way.startswith("ours"):  # the others make one at a time
            taken[way] = [time / updates for time in taken[way]]
    middle = {way: statistics.median(times) for way, times in taken.items()}
    row: dict[str, object] = {
        "network": name,
        "objective": objective,
        "stage": stage,
        "batch": options.batch,
        "seconds": middle,
        "all_seconds": taken,
        "floor_seconds": floor,
    }
    if peaks is not None:
        row["peak_bytes"] = peaks
    if "plain" in middle:
        row["ratio"] = middle["plain"] / middle["ours"]
        if "ours, bf16" in middle:
            row["ratio_bf16"] = middle["plain"] / middle["ours, bf16"]
    if "ours, dense" in middle:
        row["overhead_of_pruning"] = middle["ours"] / middle["ours, dense"] - 1
    return row


def show(row: dict[str, object]) -> None:
    middle = row["seconds"]
    assert isinstance(middle, dict)
    print(f"{row['network']}, {row['objective']}, {row['stage']}, batch {row['batch']}")
    for way, value in middle.items():
        print(f"  {way:<12} {value:8.3f} s   {value / middle['ours']:6.2f} × ours")
    print(f"  {'floor':<12} {row['floor_seconds']:8.3f} s   {row['floor_seconds'] / middle['ours']:6.0%} of ours")
    peaks = row.get("peak_bytes")
    if isinstance(peaks, dict):
        print(f"  memory       {', '.join(f'{way} {size / 2**20:.0f} MiB' for way, size in peaks.items())}")
    if "overhead_of_pruning" in row:
        print(f"  masks cost {row['overhead_of_pruning']:+.1%}")


def profile(name: str, objective: str, stage: str, options: argparse.Namespace) -> None:
    split = Split(
        torch.randint(0, 256, (options.batch, *SHAPE), dtype=torch.uint8), torch.randint(CLASSES, (options.batch,))
    )
    update = our_update(name, objective, stage, split, options.sparsity, options.bf16, 1, options.torch_attacks)
    update()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        update()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


def cells(options: argparse.Namespace) -> Iterable[tuple[str, str, str]]:
    for name in options.networks:
        for objective in options.objectives:
            for stage in ["evaluate"] if objective == "pgd50" else options.stages:
                yield name, objective, stage


def use_options(options: argparse.Namespace) -> None:
    """Make the settings of this process those of the command line."""
    if options.threads:
        torch.set_num_threads(options.threads)
    OBJECTIVES["mixtrain"] = replace(OBJECTIVES["mixtrain"], samples=options.samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["vgg16_bn"], help="of `hydraprune models`")
    parser.add_argument("--objectives", nargs="+", default=["trades"], choices=[*OBJECTIVES, "pgd50"])
    parser.add_argument(
        "--stages", nargs="+", default=["prune", "finetune"], choices=["pretrain", "prune", "finetune"]
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--samples", type=int, default=5, help="images of a batch that MixTrain bounds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=1, help="of ours at once; short ones need more")
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's own choice")
    parser.add_argument("--bf16", action="store_true", help="also ours in bfloat16")
    parser.add_argument("--torch-attacks", action="store_true", help="ours without sparse_attacks")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument(
        "--plain-keeps-memory", action="store_true", help="the plain loop, too, keeps the memory that it frees"
    )
    parser.add_argument("--memory", action="store_true", help="also by how much memory grows in the first update")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes, instead of a comparison")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    use_options(options)
    if options.profile:
        for cell in cells(options):
            profile(*cell, options)
        return
    peak = peak_flops()
    rows = []
    for cell in cells(options):
        rows.append(measure(*cell, options, peak))
        if not options.json:
            show(rows[-1])
    machine = {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "peak_flops": peak,
    }
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}))
    else:
        print(", ".join(f"{key} {value}" for key, value in machine.items()))


if __name__ == "__main__":
    main()
