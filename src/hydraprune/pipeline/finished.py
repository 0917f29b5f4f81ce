"""What finished stages left: a network, its masks, and the images that stood an attack."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hydraprune import io, sparsity
from hydraprune.errors import UserError
from hydraprune.paths import StagePaths
from hydraprune.pipeline.descriptions import Stage
from hydraprune.pipeline.project import Project
from hydraprune.pipeline.stage_folder import read_outcome


def load_network(project: Project, network: Stage) -> nn.Module:
    """Return the plain network, pruned weights at zero, that a finished stage left."""
    model = project.build()
    sparsity.restore(model, read_network(project.paths.stage(network.kind, network.key)))
    return sparsity.bake(model).eval()


def load_masks(project: Project, network: Stage) -> dict[str, Tensor]:
    """Return the masks that a finished stage left, by parameter name; empty for a dense network."""
    tensors = read_network(project.paths.stage(network.kind, network.key))
    return {name.removesuffix(".mask"): mask for name, mask in tensors.items() if name.endswith(".weight.mask")}


def read_network(paths: StagePaths) -> dict[str, Tensor]:
    """Return the tensors of the network that a finished stage left; `UserError` unless they are those on record."""
    recorded = read_outcome(paths).get("model_sha256")
    try:
        if recorded in (None, io.file_hash(paths.model)):
            return load_file(paths.model)
        what = "its hash is not the one on record"
    except (UserError, SafetensorError) as error:
        what = str(error)
    raise UserError(f"'{paths.model}' is not what its stage left: {what}; delete its folder to make the stage anew")


def standing_images(evaluated: StagePaths, n: int, same_ball: bool) -> Tensor:
    """Return the places of the images that are worth a proof: those that stood the attack, if it was in this ball."""
    if not evaluated.verdicts.exists():
        return torch.arange(n)
    return torch.nonzero(load_file(evaluated.verdicts)["robust" if same_ball else "benign"]).flatten()
