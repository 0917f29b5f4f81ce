"""How every architecture starts."""

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
