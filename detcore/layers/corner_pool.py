"""Corner pooling: Law & Deng, "CornerNet: Detecting objects as paired keypoints", 2018, section 3.3."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detcore.layers.conv import ConvBlock


def running_max(x: Tensor, towards: str) -> Tensor:
    """[N, C, h, w] running maximum along the way to the "top", "left", "bottom" or "right": a cell's value is the
    largest of itself and all cells behind it."""
    dim, backwards = {"top": (2, True), "left": (3, True), "bottom": (2, False), "right": (3, False)}[towards]
    if backwards:
        return x.flip(dim).cummax(dim).values.flip(dim)
    return x.cummax(dim).values


class CornerPool(nn.Module):
    """Gives each cell the maxima along the two sides that would meet there, if it were a corner of a box.

    A corner is seldom on its object, so evidence for it lies elsewhere: for a top-left corner in all cells to the right
    in its row, and in all cells below in its column. The two ways `towards`, ("top", "left") or ("bottom", "right"),
    have `inner` channels.
    """

    def __init__(self, channels: int, towards: Sequence[str], inner: int = 128):
        super().__init__()
        self.towards = tuple(towards)
        self.direction1_conv = ConvBlock(channels, inner, 3, norm="bn")
        self.direction2_conv = ConvBlock(channels, inner, 3, norm="bn")
        self.aftpool_conv = ConvBlock(inner, channels, 3, norm="bn", act=None)
        self.conv1 = ConvBlock(channels, channels, 1, norm="bn", act=None)
        self.conv2 = ConvBlock(channels, channels, 3, norm="bn")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to the same shape."""
        first, second = self.towards
        pooled = running_max(self.direction1_conv(x), first) + running_max(self.direction2_conv(x), second)
        return self.conv2((self.aftpool_conv(pooled) + self.conv1(x)).relu())
