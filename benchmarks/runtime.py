"""Latency of pruned networks: the sparse runtime against dense engines, all in one run, one after the other.

    python benchmarks/runtime.py [--json]
    python benchmarks/runtime.py --networks vgg16_bn --batches 1 --threads 1 --repeats 60
    python benchmarks/runtime.py --networks vgg16_bn --batches 1 --threads 1 --sparsities 0 .5 .8 .9 .99 --plot a.svg

Masks are random, BatchNorm has random statistics and is folded in every engine that folds. A round calls every
engine, for 20 ms to warm its caches and threads and once for the clock, so that other work on the machine hits all
alike. Times are medians over the rounds, of the processor's time at one thread and of the wall clock at more; a ratio
is the median over the rounds of the rival's time by ours, with its quartiles. Before it is timed, a rival must give
the logits of torch, within 1e-3 of the largest in float32 and 15 % in lower precision. Dense engines gain nothing
from zeros: they run the network at 90 %.

Engines, where installed: ours with each set of kernels; ONNX Runtime float32 and int8 (static quantisation, per
channel); torch eager (channels_last) and torch.compile bfloat16; OpenVINO float32 and bfloat16.
"""

import argparse
import copy
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hydraprune import models, runtime
from hydraprune.export import Architecture, save_compact, save_onnx

Run = Callable[[np.ndarray], np.ndarray]
SHAPE = (3, 32, 32)
RIVALS = {
    "onnxruntime fp32": lambda w: onnxruntime_engine(w.dense_file(), w.threads),
    "onnxruntime int8": lambda w: onnxruntime_engine(quantised(w.dense_file(), w.folder, w.images), w.threads),
    "torch eager fp32": lambda w: torch_engine(copy.deepcopy(w.model), torch.float32, compiled=False),
    "torch.compile bf16": lambda w: torch_engine(copy.deepcopy(w.model), torch.bfloat16, compiled=True),
    "openvino fp32": lambda w: openvino_engine(w.dense_file(), w.threads, "f32"),
    "openvino bf16": lambda w: openvino_engine(w.dense_file(), w.threads, "bf16"),
}


def network(name: str, sparsity: float) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a network with random masks whose activations stay of the order of 1."""
    torch.manual_seed(0)
    model, masks = models.create(name).eval(), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mask = torch.rand_like(module.weight) >= sparsity
            module.weight.data.mul_(mask / (1 - sparsity) ** 0.5)
            masks[f"{path}.weight"] = mask
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.uniform_(-0.1, 0.1)
    return model, masks


class Work:
    """What the rivals of one case compute: `model` on `images`."""

    def __init__(self, model: nn.Module, images: np.ndarray, threads: int, folder: Path) -> None:
        self.model, self.images, self.threads, self.folder = model, images, threads, folder

    def expected(self) -> np.ndarray:
        return logits_of_torch(self.model, self.images)

    def dense_file(self) -> Path:
        file = self.folder / "dense.onnx"
        if not file.exists():
            save_onnx(file, self.model, SHAPE)
        return file


def logits_of_torch(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


def onnxruntime_engine(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def quantised(file: Path, folder: Path, images: np.ndarray) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{"pixels": images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    prepared, out = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    return out


def torch_engine(model: nn.Module, dtype: torch.dtype, *, compiled: bool) -> Run:
    model = model.to(dtype=dtype, memory_format=torch.channels_last)
    call = torch.compile(model) if compiled else model

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(dtype=dtype, memory_format=torch.channels_last)
            return call(pixels).float().numpy()

    return run


def openvino_engine(file: Path, threads: int, precision: str) -> Run:
    import openvino

    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(file), "CPU", config)
    return lambda images: compiled(images)[0]


def rivals(work: Work, wanted: list[str]) -> tuple[dict[str, Run], dict[str, str]]:
    """Return every dense engine that is installed and right, by name, and why others are left out."""
    expected = work.expected()
    engines: dict[str, Run] = {}
    left_out = {}
    for name in wanted:
        try:
            engine = RIVALS[name](work)
            error = np.abs(engine(work.images) - expected).max() / np.abs(expected).max()
        except Exception as problem:  # noqa: BLE001 - an engine that is missing or fails is no reason to stop
            left_out[name] = f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"
            continue
        if error > (1e-3 if name.endswith("fp32") else 0.15):
            left_out[name] = f"its logits are off by {error:.2g} of the largest"
            continue
        engines[name] = engine
    return engines, left_out


def timed(engines: dict[str, Run], images: np.ndarray, repeats: int, threads: int) -> dict[str, list[float]]:
    """Return the milliseconds of each engine in each round."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, run in engines.items():
            if threads > 1:
                time.sleep(0.05)  # until the threads of the engine before have stopped waiting for work
            warm = time.perf_counter() + 0.02
            run(images)
            while time.perf_counter() < warm:
                run(images)
            start = clock()
            run(images)
            times[name].append(1e3 * (clock() - start))
    return times


def measure(options: argparse.Namespace, name: str, batch: int, threads: int) -> dict[str, Any]:
    images = np.random.default_rng(0).random((batch, *SHAPE), dtype=np.float32)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        engines, left_out = rivals(Work(network(name, 0.9)[0], images, threads, Path(folder)), options.rivals)
        dense = list(engines)
        for sparsity in options.sparsities:
            model, masks = network(name, sparsity)
            path = Path(folder) / f"{sparsity}.hp"
            save_compact(path, model, masks, Architecture(name, 10, SHAPE), {})
            expected = logits_of_torch(model, images)
            for kernels in options.kernels:
                session = runtime.load(path, threads, kernels)
                error = np.abs(session(images) - expected).max() / np.abs(expected).max()
                assert error <= 1e-5, f"our own logits are off by {error}"
                engines[f"{kernels} {sparsity:g}"] = session
        repeats = options.repeats if batch == 1 else max(3, options.repeats // 6)
        times = timed(engines, images, repeats, threads)
    ratios = {
        ours: {rival: quartiles([r / o for r, o in zip(times[rival], times[ours], strict=True)]) for rival in dense}
        for ours in times
        if ours not in dense
    }
    return {
        "network": name,
        "batch": batch,
        "threads": threads,
        "rounds": repeats,
        "milliseconds": {engine: quartiles(found) for engine, found in times.items()},
        "ratios": ratios,
        "left_out": left_out,
    }


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def shown(row: dict[str, Any]) -> str:
    lines = [f"{row['network']}, batch {row['batch']}, {row['threads']} thread(s), {row['rounds']} rounds"]
    lines += [f"  {name}: left out, {reason}" for name, reason in row["left_out"].items()]
    for name, value in row["milliseconds"].items():
        line = f"  {name:<20} {value['median']:9.3f} ms ({value['low']:.3f} to {value['high']:.3f})"
        for rival, ratio in row["ratios"].get(name, {}).items():
            line += f"  {ratio['median']:.2f}x {rival} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        lines.append(line)
    for kernels, found in row["break_even"].items():
        told = ", ".join(f"{100 * s:.0f} % {rival}" for rival, s in found.items() if s is not None)
        lines += [f"  {kernels} is faster from: {told}"] if told else []
    return "\n".join(lines)


def break_even(row: dict[str, Any], kernels: str) -> dict[str, float | None]:
    """Return, for each rival, the sparsity from which on ours is faster, on the line between two measured ones."""
    ours = sorted(
        (float(name.split()[1]), ratios) for name, ratios in row["ratios"].items() if kernels in name.split()
    )
    found: dict[str, float | None] = {}
    for rival in ours[0][1]:
        points = [(sparsity, ratios[rival]["median"]) for sparsity, ratios in ours]
        found[rival] = None
        for (s0, r0), (s1, r1) in itertools.pairwise(points):
            if r0 < 1 <= r1:
                found[rival] = s0 + (s1 - s0) * (1 - r0) / (r1 - r0)
    return found


def plot(path: Path, row: dict[str, Any]) -> None:
    """Draw the time of each engine over the sparsity, as SVG, PNG or PDF."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "hydraprune"
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, value in row["milliseconds"].items():
        if name not in row["ratios"]:
            axes.axhline(value["median"], linestyle="--", linewidth=1, color="grey")
            axes.text(0, value["median"], f" {name}", fontsize=8, va="bottom")
            continue
        kernels, sparsity = name.split()
        lines.setdefault(kernels, []).append((100 * float(sparsity), value["median"]))
    for kernels, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=f"hydraprune, {kernels}")
    axes.set(yscale="log", xlabel="sparsity in %", ylabel="milliseconds")
    axes.set_title(f"{row['network']}, batch {row['batch']}, {row['threads']} thread(s)", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def machine() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16_bn", "wrn_28_4", "resnet18", "cnn_large"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95, 0.99])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kernels", nargs="+", default=list(runtime.available_kernels()[:2]))
    parser.add_argument("--rivals", nargs="+", choices=list(RIVALS), default=list(RIVALS), metavar="RIVAL")
    parser.add_argument("--repeats", type=int, default=48, help="rounds at batch 1; a sixth of them at other sizes")
    parser.add_argument("--plot", type=Path, help="draw the last case over the sparsity")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    rows = []
    for case in [(n, b, t) for n in options.networks for b in options.batches for t in options.threads]:
        rows.append(measure(options, *case))
        rows[-1]["break_even"] = {kernels: break_even(rows[-1], kernels) for kernels in options.kernels}
        print(shown(rows[-1]), flush=True, file=sys.stderr if options.json else sys.stdout)
    if options.plot is not None:
        plot(options.plot, rows[-1])
    if options.json:
        versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
        print(json.dumps({"machine": machine(), "versions": versions, "rows": rows}))


if __name__ == "__main__":
    main()
