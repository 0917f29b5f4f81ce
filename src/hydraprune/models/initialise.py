"""How every architecture starts."""

import math

from torch import nn


def he_initialise(network: nn.Module) -> nn.Module:
    """Set the weights as He et al. 2015 (arXiv 1502.01852) derive for ReLU networks; return `network`.

    Convolutions and fully connected layers: w ~ N(0, 2 / fan_in), biases 0, so that the variance of the activations
    stays what it is from layer to layer. BatchNorm: scale 1, shift 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def ibp_init_(model: nn.Module) -> nn.Module:
    """Draw every convolution's and linear layer's weight but the last one's from N(0, 2π/fan_in²), in place.

    With these deviations interval bounds neither explode nor vanish from layer to layer (Shi et al. 2021, arXiv
    2103.17268, who also halve what follows a residual sum; that is left out here).
    """
    layers = [
        module for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    ]
    for layer in layers[:-1]:
        fan_in = layer.weight.shape[1:].numel()
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 * math.pi) / fan_in)
    return model
