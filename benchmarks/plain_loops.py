"""Updates as the original papers describe them and their published code does them, written here anew and plainly.

NCHW, float32; in every forward pass the scores of each layer are sorted whole; TRADES computes the clean logits again
in each step of its attack and once more to show them; symbolic bounds carry, for every neuron of an image, its
coefficient for each pixel and for each ReLU before it that may be on either side of 0. Bounds are of chains of
convolutions, fully connected layers and ReLUs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from hydraprune import models, sparsity
from hydraprune.data import Split
from hydraprune.objectives import IBP, CrownIBP, MixTrain, Objective, Stability, Trades


class Sorted(torch.autograd.Function):
    """1 for the largest scores and 0 for the rest, by a full sort; the gradient goes straight through."""

    @staticmethod
    def forward(_: object, scores: Tensor, kept: int) -> Tensor:
        order = scores.flatten().sort().indices
        mask = torch.ones_like(scores).flatten()
        mask[order[: scores.numel() - kept]] = 0
        return mask.view_as(scores)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SortedMask(nn.Module):
    """The masked weight, sorted anew whenever it is read."""

    def __init__(self, weight: Tensor, sparsity_asked: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(weight.detach().clone())
        self.kept = sparsity.kept_count(sparsity_asked, weight.numel())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * Sorted.apply(self.scores.abs(), self.kept)


def network_for(name: str, shape: tuple[int, int, int], classes: int, stage: str, sparsity_asked: float) -> nn.Module:
    """Return the network of the plain loop, with gradients on what the stage trains."""
    network = models.create(name, classes, shape)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and stage != "pretrain":
            parametrize.register_parametrization(module, "weight", SortedMask(module.weight, sparsity_asked))
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key.endswith("scores") == (stage == "prune"))
    return network


def trades(network: nn.Module, images: Tensor, labels: Tensor, objective: Trades) -> Tensor:
    attack = objective.attack
    eps, step = float(attack.eps), float(attack.step_size)
    network.eval()
    adversarial = images + 0.001 * torch.randn_like(images)
    for _ in range(attack.steps):
        adversarial.requires_grad_()
        divergence = F.kl_div(
            F.log_softmax(network(adversarial), 1), F.softmax(network(images), 1), reduction="batchmean"
        )
        (gradient,) = torch.autograd.grad(divergence, adversarial)
        moved = adversarial.detach() + step * gradient.sign()
        adversarial = torch.min(torch.max(moved, images - eps), images + eps).clamp(0, 1)
    network.train()
    clean, attacked = network(images), network(adversarial)
    with torch.no_grad():
        network(adversarial)  # the accuracy that is shown
    robust = F.kl_div(F.log_softmax(attacked, 1), F.softmax(clean, 1), reduction="batchmean")
    return F.cross_entropy(clean, labels) + 6.0 * robust


def stability(network: nn.Module, images: Tensor, labels: Tensor, objective: Stability) -> Tensor:
    clean, noisy = network(images), network(images + objective.sigma * torch.randn_like(images))
    robust = F.kl_div(F.log_softmax(noisy, 1), F.softmax(clean, 1), reduction="batchmean")
    return F.cross_entropy(clean, labels) + 6.0 * robust


def pgd(network: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int = 50) -> Tensor:
    adversarial = images + (2 * torch.rand_like(images) - 1) * eps
    for _ in range(steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(adversarial), labels), adversarial)
        moved = adversarial.detach() + 2 / 255 * gradient.sign()
        adversarial = torch.min(torch.max(moved, images - eps), images + eps).clamp(0, 1)
    return adversarial


# Bounds


def chain(network: nn.Module) -> list[nn.Module]:
    """Return the layers in order, containers opened."""
    layers: list[nn.Module] = []
    for layer in network.children():
        layers += chain(layer) if isinstance(layer, nn.Sequential) else [layer]
    known = (models.Normalize, nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten)
    foreign = [type(layer).__name__ for layer in layers if not isinstance(layer, known)]
    if foreign:
        raise SystemExit(
            f"the plain loop has no bounds of {', '.join(sorted(set(foreign)))}; --no-plain leaves it out"
        )
    return layers


Read = list[tuple[nn.Module, Tensor | None]]
"""Layers and their weights, each read, and so sorted, once for a pass."""


def read(network: nn.Module) -> Read:
    return [(layer, getattr(layer, "weight", None)) for layer in chain(network)]


def linear(layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Return W·x + b; of a normalisation x / std."""
    if weight is None:
        return x / layer.std
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)
    return F.linear(x, weight, bias)


def ball(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return middle and half width of the box around each image, inside [0, 1]."""
    lower, upper = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    return (upper + lower) / 2, (upper - lower) / 2


def intervals(layers: Read, middle: Tensor, half: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return interval bounds below `rows` · output, and (lower, upper) before each ReLU; the last layer is merged."""
    before: list[Tensor] = []
    for layer, weight in layers[:-1]:
        if isinstance(layer, nn.ReLU):
            before.append(torch.stack([middle - half, middle + half]))
            lower, upper = F.relu(before[-1])
            middle, half = (upper + lower) / 2, (upper - lower) / 2
        elif isinstance(layer, nn.Flatten):
            middle, half = middle.flatten(1), half.flatten(1)
        elif weight is None:
            middle, half = layer(middle), half / layer.std
        else:
            middle, half = linear(layer, middle, weight, layer.bias), linear(layer, half, weight.abs())
    last, weight = layers[-1]
    merged, bias = rows @ weight, rows @ last.bias
    lower = (merged @ middle.unsqueeze(2)).squeeze(2) + bias - (merged.abs() @ half.unsqueeze(2)).squeeze(2)
    return lower, before


def backwards(layers: Read, shapes: list[torch.Size], before: list[Tensor], rows: Tensor) -> list[Tensor]:
    """Return coefficients of the input and a constant: a linear function below `rows` · output."""
    count, constant, before = rows.shape[:2], torch.zeros(rows.shape[:2]), list(before)
    for (layer, weight), shape in zip(reversed(layers), reversed(shapes), strict=True):
        if isinstance(layer, nn.ReLU):
            lower, upper = before.pop().unsqueeze(2)
            above = upper.clamp(min=0) / (upper.clamp(min=0) - lower.clamp(max=0)).clamp(min=1e-8)
            below = (above > 0.5).float()
            constant = constant + (rows.clamp(max=0) * above * -lower.clamp(max=0)).flatten(2).sum(2)
            rows = rows.clamp(min=0) * below + rows.clamp(max=0) * above
        elif isinstance(layer, nn.Flatten):
            rows = rows.view(*count, *shape)
        elif isinstance(layer, nn.Linear):
            constant = constant + rows @ layer.bias
            rows = rows @ weight
        elif isinstance(layer, nn.Conv2d):
            constant = constant + rows.sum((3, 4)) @ layer.bias
            side = (rows.shape[-1] - 1) * layer.stride[0] - 2 * layer.padding[0] + layer.kernel_size[0]
            pulled = F.conv_transpose2d(
                rows.flatten(0, 1), weight, None, layer.stride, layer.padding, shape[-1] - side
            )
            rows = pulled.view(*count, *shape)
        else:
            assert isinstance(layer, models.Normalize)
            rows = rows / layer.std
            constant = constant - (rows * layer.mean).flatten(2).sum(2)
    return [rows, constant]


def robust_loss(lower: Tensor) -> Tensor:
    worst = torch.cat([lower.new_zeros(len(lower), 1), -lower], 1)
    return F.cross_entropy(worst, torch.zeros(len(lower), dtype=torch.int64))


def margins(labels: Tensor, classes: int) -> Tensor:
    """Return the rows of true − other, (batch, classes − 1, classes)."""
    true = F.one_hot(labels, classes)
    others = torch.eye(classes).expand(len(labels), -1, -1)[true == 0].view(len(labels), classes - 1, classes)
    return true.unsqueeze(1) - others


def ibp(network: nn.Module, images: Tensor, labels: Tensor, objective: IBP) -> Tensor:
    clean = network(images)
    lower, _ = intervals(read(network), *ball(images, float(objective.eps)), margins(labels, clean.shape[1]))
    return objective.kappa_end * F.cross_entropy(clean, labels) + (1 - objective.kappa_end) * robust_loss(lower)


def crown_ibp(network: nn.Module, images: Tensor, labels: Tensor, objective: CrownIBP) -> Tensor:
    middle, half = ball(images, float(objective.eps))
    clean = network(images)
    rows = margins(labels, clean.shape[1])
    by_intervals, before = intervals(read(network), middle, half, rows)
    shapes, x = [], images[:1]
    with torch.no_grad():
        for layer in chain(network):
            shapes.append(x.shape[1:])
            x = layer(x)
    coefficients, constant = backwards(read(network), shapes, before, rows)
    linear_part = (coefficients * middle.unsqueeze(1) - coefficients.abs() * half.unsqueeze(1)).flatten(2).sum(2)
    lower = objective.beta_end * (linear_part + constant) + (1 - objective.beta_end) * by_intervals
    return objective.kappa_end * F.cross_entropy(clean, labels) + (1 - objective.kappa_end) * robust_loss(lower)


def symbolic(layers: Read, middle: Tensor, half: Tensor, row: Tensor) -> Tensor:
    """Return bounds below `row` · output of one image by the symbols of pixels and of ReLUs on both sides of 0."""
    middle = middle.unsqueeze(0)
    symbols = torch.diag(half.flatten()).view(-1, *half.shape)
    for layer, weight in layers:
        if isinstance(layer, nn.ReLU):
            reach = symbols.abs().sum(0, keepdim=True)
            lower, upper = middle - reach, middle + reach
            slope = upper.clamp(min=0) / (upper.clamp(min=0) - lower.clamp(max=0)).clamp(min=1e-8)
            error = slope * -lower.clamp(max=0) / 2
            middle, symbols = middle * slope + error, symbols * slope
            places = ((lower < 0) & (upper > 0)).flatten().nonzero().squeeze(1)
            new = torch.zeros(len(places), middle.numel())
            new[torch.arange(len(places)), places] = error.flatten()[places]
            symbols = torch.cat([symbols, new.view(-1, *symbols.shape[1:])])
        elif isinstance(layer, nn.Flatten):
            middle, symbols = middle.flatten(1), symbols.flatten(1)
        elif weight is None:
            middle, symbols = layer(middle), symbols / layer.std
        else:
            both = linear(layer, torch.cat([middle, symbols]), weight)
            bias = layer.bias.view(-1, *[1] * (both.ndim - 2))
            middle, symbols = both[:1] + bias, both[1:]
    return (row @ middle.squeeze(0)) - (symbols @ row.T).abs().sum(0)


def mixtrain(network: nn.Module, images: Tensor, labels: Tensor, objective: MixTrain) -> Tensor:
    clean = network(images)
    chosen = torch.randperm(len(labels))[: objective.samples]
    middles, halves = ball(images[chosen], float(objective.eps))
    rows = margins(labels[chosen], clean.shape[1])
    layers = read(network)
    lower = torch.stack([symbolic(layers, *one) for one in zip(middles, halves, rows, strict=True)])
    return F.cross_entropy(clean, labels) + objective.weight * robust_loss(lower)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "trades": trades,
    "stability": stability,
    "ibp": ibp,
    "crown-ibp": crown_ibp,
    "mixtrain": mixtrain,
}


def update(network: nn.Module, loss_of: str, objective: Objective, split: Split) -> Callable[[], float]:
    """Return one update of the plain loop on one batch, which gives its loss."""
    images, labels = split.images / 255, split.labels
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def once() -> float:
        loss = LOSSES[loss_of](network, images, labels, objective)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return once
