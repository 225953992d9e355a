"""Initial weights, and norms that do not learn."""
from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def prior_bias(probability: float) -> float:
    """The bias with which a sigmoid gives `probability` (RetinaNet, section 3.3)."""
    return -math.log((1 - probability) / probability)


def init_normal(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, std: float = 0.01, bias: float = 0.0) -> None:
    """Gaussian weights and a constant bias for a prediction layer."""
    nn.init.normal_(module.weight, 0, std)
    if module.bias is not None:
        nn.init.constant_(module.bias, bias)


def init_weights(network: nn.Module, init: Callable[[Tensor], Tensor]) -> None:
    """Fill the weights of all convolutions in place by `init`; biases are zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def kaiming_normal(weight: Tensor) -> Tensor:
    """He et al.'s initialisation, by the number of outputs."""
    return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def kaiming_uniform(weight: Tensor) -> Tensor:
    """Uniform weights that keep the variance of what goes in (Caffe2's "Xavier")."""
    return nn.init.kaiming_uniform_(weight, a=1)


def normal(weight: Tensor) -> Tensor:
    """Gaussian weights of standard deviation 0.01, as dense heads have them."""
    return nn.init.normal_(weight, 0, 0.01)


def set_batch_norm(network: nn.Module, eps: float, momentum: float) -> None:
    """What batch norm adds to the variance, and how fast its statistics follow the batches."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = eps, momentum


def freeze_norm_statistics(network: nn.Module) -> None:
    """Batch norm layers (synchronised ones too) use their running statistics and leave them as they are."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
