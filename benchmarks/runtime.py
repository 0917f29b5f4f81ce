"""Latency of pruned networks: the sparse runtime against dense engines, all in one run, one after the other.

    python benchmarks/runtime.py [--json]
    python benchmarks/runtime.py --networks vgg16_bn --batches 1 --threads 1 --repeats 30

Masks are random, BatchNorm has random statistics, BatchNorm is folded in every engine that folds. A round calls every
engine once after one call that warms its caches, so that other work on the machine hits all alike; the figure is the
median over the rounds, of the processor's time at one thread and of the wall clock at more. Before it is timed, a rival
must give the logits of torch, within 1e-3 of the largest in float32 and 5 % in lower precision.

Engines, where installed: ours with each set of kernels; ONNX Runtime float32 and int8 (static quantisation, per
channel); torch eager (channels_last) and torch.compile bfloat16; OpenVINO float32 and bfloat16.
"""

import argparse
import json
import platform
import statistics
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


def torch_engine(model: nn.Module, dtype: torch.dtype, compiled: bool) -> Run:
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


def rivals(model: nn.Module, folder: Path, threads: int, images: np.ndarray, wanted: list[str]) -> dict[str, Run]:
    """Return every dense engine that is installed and wanted, by name; what fails is said and left out."""
    file = folder / "dense.onnx"
    makers: dict[str, Callable[[], Run]] = {
        "onnxruntime fp32": lambda: onnxruntime_engine(file, threads),
        "onnxruntime int8": lambda: onnxruntime_engine(quantised(file, folder, images), threads),
        "torch eager fp32": lambda: torch_engine(network_copy(model), torch.float32, False),
        "torch.compile bf16": lambda: torch_engine(network_copy(model), torch.bfloat16, True),
        "openvino fp32": lambda: openvino_engine(file, threads, "f32"),
        "openvino bf16": lambda: openvino_engine(file, threads, "bf16"),
    }
    save_onnx(file, model, SHAPE)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    engines = {}
    for name in wanted:
        try:
            engine = makers[name]()
            error = np.abs(engine(images) - expected).max() / np.abs(expected).max()
        except Exception as problem:  # noqa: BLE001 - an engine that is missing or fails is no reason to stop
            print(f"  {name}: left out ({type(problem).__name__}: {str(problem).splitlines()[:1]})")
            continue
        if error > (1e-3 if name.endswith("fp32") else 0.05):
            print(f"  {name}: left out, its logits are off by {error:.2g} of the largest")
            continue
        engines[name] = engine
    return engines


def network_copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def timed(engines: dict[str, Run], images: np.ndarray, repeats: int, threads: int) -> dict[str, float]:
    """Return the median milliseconds of each engine."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, run in engines.items():
            run(images)
            start = clock()
            run(images)
            times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def measure(options: argparse.Namespace, name: str, batch: int, threads: int) -> dict[str, Any]:
    images = np.random.default_rng(0).random((batch, *SHAPE), dtype=np.float32)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        # Dense engines gain nothing from zeros: they run the network at 90 %.
        engines = rivals(network(name, 0.9)[0], Path(folder), threads, images, options.rivals)
        for sparsity in options.sparsities:
            model, masks = network(name, sparsity)
            path = Path(folder) / f"{sparsity}.hp"
            save_compact(path, model, masks, Architecture(name, 10, SHAPE), {})
            with torch.inference_mode():
                expected = model(torch.from_numpy(images)).numpy()
            for kernels in options.kernels:
                session = runtime.load(path, threads, kernels)
                error = np.abs(session(images) - expected).max() / np.abs(expected).max()
                assert error <= 1e-5, f"our own logits are off by {error}"
                engines[f"ours {kernels} {sparsity:g}"] = session
        repeats = options.repeats if batch == 1 else max(3, options.repeats // 8)
        milliseconds = timed(engines, images, repeats, threads)
    return {"network": name, "batch": batch, "threads": threads, "repeats": repeats, "milliseconds": milliseconds}


def shown(row: dict[str, Any]) -> str:
    times = row["milliseconds"]
    dense = {name: value for name, value in times.items() if not name.startswith("ours")}
    lines = [f"{row['network']}, batch {row['batch']}, {row['threads']} thread(s), median of {row['repeats']}"]
    lines += [f"  {name:<22} {value:9.3f} ms" for name, value in dense.items()]
    for name, value in times.items():
        if name.startswith("ours"):
            ratios = "  ".join(f"{other / value:5.2f}x {rival}" for rival, other in dense.items())
            lines.append(f"  {name:<22} {value:9.3f} ms  {ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16_bn", "wrn_28_4", "resnet18", "cnn_large"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95, 0.99])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kernels", nargs="+", default=list(runtime.available_kernels()[:2]))
    parser.add_argument(
        "--rivals", nargs="+", default=["onnxruntime fp32", "onnxruntime int8", "torch eager fp32", "torch.compile bf16",
                                        "openvino fp32", "openvino bf16"],
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    cases = [(n, b, t) for n in options.networks for b in options.batches for t in options.threads]
    rows = []
    for case in cases:
        rows.append(measure(options, *case))
        if not options.json:
            print(shown(rows[-1]), flush=True)
    if options.json:
        versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
        print(json.dumps({"machine": platform.processor() or platform.machine(), "versions": versions, "rows": rows}))


if __name__ == "__main__":
    main()
