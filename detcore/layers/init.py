"""Initial weights, and the settings of norms."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

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


# Ways to fill weights in place: He et al.'s, by the number of outputs; uniform, keeping the variance of what goes in
# (Caffe2's "Xavier"); Gaussian, as dense heads have them.
kaiming_normal = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
kaiming_uniform = partial(nn.init.kaiming_uniform_, a=1)
normal = partial(nn.init.normal_, std=0.01)


def set_batch_norm(network: nn.Module, eps: float, momentum: float) -> None:
    """What batch norm adds to the variance, and how fast its statistics follow the batches."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = eps, momentum
