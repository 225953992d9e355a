"""RetinaNet on EfficientNet: Tan & Le, "EfficientNet", 2019 (`detcore.backbones.efficientnet`); batch norm by level
as in Ghiasi et al., "NAS-FPN", 2019, and Du et al., "SpineNet", 2020.

RetinaNet's backbones keep batch norm's statistics frozen, and its towers have no norm. With an efficient backbone and
images of one size more of them fit into a batch, so batch norm can measure: here it learns everywhere, in the
backbone, the pyramid's output convolutions and the towers. The towers' convolutions are shared by all levels, but the
features of different levels are distributed differently. So each level has batch norms of its own between the shared
convolutions. Published with the backbone's statistics over all GPUs (`--sync-bn`).
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from detcore.backbones.efficientnet import EfficientNet
from detcore.detectors import OneStageDetector
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal
from detcore.methods.retinanet import STRIDES, RetinaHead
from detcore.necks.fpn import FPN
from detcore.ops.matching import IoUMatcher
from detcore.ops.nms import PostProcess

OVERLAP = 0.5  # IoU from which an anchor is positive; all others are background

norm_block = partial(ConvBlock, norm="bn")


class LevelNormHead(RetinaHead):
    """RetinaNet's head whose towers have a batch norm for each level and convolution; arguments as `RetinaHead`'s."""

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 4,
                 postprocess: PostProcess | None = None):
        super().__init__(width, num_classes, depth=0, anchor_scale=anchor_scale, postprocess=postprocess)
        # As in RetinaNet, an object's best anchors are positive however little they overlap it.
        self.matcher = IoUMatcher(OVERLAP, OVERLAP, low_quality=0.0)
        self.cls_convs, self.reg_convs = level_towers(width, depth), level_towers(width, depth)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level class logits [N, A * C, h, w] and box offsets [N, A * 4, h, w]."""
        return ([self.retina_cls(tower(x)) for tower, x in zip(self.cls_convs, features)],
                [self.retina_reg(tower(x)) for tower, x in zip(self.reg_convs, features)])


def level_towers(width: int, depth: int) -> nn.ModuleList:
    """A tower for each level: their convolutions are the same, their batch norms are not."""
    towers = [[norm_block(width, width, 3) for _ in range(depth)] for _ in STRIDES]
    for first, *others in zip(*towers):
        init_normal(first.conv)
        for block in others:
            block.conv = first.conv
    return nn.ModuleList([nn.Sequential(*tower) for tower in towers])


def efficientnet_retinanet(backbone: EfficientNet, num_classes: int = 80, *, width: int = 256, depth: int = 4,
                           anchor_scale: float = 4, score_threshold: float = 0.05, nms_threshold: float = 0.5,
                           max_detections: int = 100, pre_nms_top_n: int = 1000) -> OneStageDetector:
    """RetinaNet with batch norm in pyramid and head; options as in `retinanet`."""
    neck = FPN(backbone.channels, width, extra="input", relu_extra=True, block=norm_block, lateral=ConvBlock)
    head = LevelNormHead(width, num_classes, depth=depth, anchor_scale=anchor_scale,
                         postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)
