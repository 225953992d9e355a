"""VGG-16 (Simonyan & Zisserman 2015) as SSD changes it (Liu et al. 2016, section 3).

The fully connected layers 6 and 7 become convolutions, the former with holes, and the last pooling keeps the map's
size: so the network takes images of any size and ends at stride 16. Maps of odd size are rounded up in pooling.
"""
from __future__ import annotations

from torch import Tensor, nn

from detcore.layers.init import init_weights, kaiming_normal

STAGE_CONVS = (2, 2, 3, 3, 3)
FC6_DILATION = 6


class SSDVGG(nn.Module):
    """Five stages of 3x3 convolutions, then layers 6 and 7; gives the maps of conv4_3 and fc7.

    Args:
        width: channels of the first stage; 64 is published, fewer make a slim network.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, convs in enumerate(STAGE_CONVS):
            wide = width * min(2**stage, 8)
            for _ in range(convs):
                layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
                channels = wide
            if stage == 3:
                self.conv4_3 = len(layers) - 1
            last = stage == len(STAGE_CONVS) - 1
            layers.append(nn.MaxPool2d(3, 1, 1) if last else nn.MaxPool2d(2, 2, ceil_mode=True))
        # Layers 6 and 7, which a file of VGG-16's convolutions does not have.
        self.added = f"features.{len(layers)}.", f"features.{len(layers) + 2}."
        layers += [nn.Conv2d(channels, 2 * channels, 3, padding=FC6_DILATION, dilation=FC6_DILATION), nn.ReLU(),
                   nn.Conv2d(2 * channels, 2 * channels, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.channels = (channels, 2 * channels)
        init_weights(self, kaiming_normal)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [N, channels[i], H / s, W / s], s = 8 and 16."""
        x = self.features[:self.conv4_3 + 1](x)
        return x, self.features[self.conv4_3 + 1:](x)
