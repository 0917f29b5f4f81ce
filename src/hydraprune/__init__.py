"""hydraprune: networks 10 to 100 times smaller that stay robust against adversarial examples.

    import hydraprune as hp
    small = hp.prune(my_network, 0.99, data=(images, labels))
    narrow = hp.shrink(small, images[:1])
    result = hp.run(hp.Recipe(...), out="runs/mine", model=my_network, dataset=my_data)

The parts are packages of their own: `hydraprune.sparsity`, `.attacks`, `.objectives`, `.data`, `.models`, …
"""

from typing import TYPE_CHECKING, Any

from hydraprune.version import __version__

if TYPE_CHECKING:
    from hydraprune.data import Dataset, Split
    from hydraprune.pipeline import (
        Comparison,
        Data,
        Evaluation,
        Model,
        Pruning,
        Recipe,
        RunResult,
        compare,
        prune,
        run,
    )
    from hydraprune.sparsity import shrink

__all__ = [
    "Comparison",
    "Data",
    "Dataset",
    "Evaluation",
    "Model",
    "Pruning",
    "Recipe",
    "RunResult",
    "Split",
    "__version__",
    "compare",
    "prune",
    "run",
    "shrink",
]


def __getattr__(name: str) -> Any:
    """Import torch and the pipeline only when they are asked for, so that `--help` and `--version` are quick."""
    if name in {"Dataset", "Split"}:
        from hydraprune import data  # noqa: PLC0415 - the purpose of this function

        return getattr(data, name)
    if name == "shrink":
        from hydraprune import sparsity  # noqa: PLC0415

        return sparsity.shrink
    if name in __all__:
        from hydraprune import pipeline  # noqa: PLC0415

        return getattr(pipeline, name)
    raise AttributeError(f"module 'hydraprune' has no attribute '{name}'")
