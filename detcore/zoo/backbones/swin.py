"""Swin Transformers, with the weights of their authors."""
from functools import partial

from detcore.backbones.swin import SWIN_B, SWIN_L, SWIN_S, SWIN_T, Size, Swin
from detcore.pocket.slim import SLIM_SWIN
from detcore.zoo.entries import Backbone

ADDRESS = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_"


def swin(name: str, label: str, size: Size, file: str) -> Backbone:
    """A Swin Transformer by the name of its file."""
    return Backbone(name, "Swin", partial(Swin, size), f"{ADDRESS}{file}.pth", slim=SLIM_SWIN, label=label)


SWIN_T_224 = swin("Swin-T", "swin-t-p4-w7-224", SWIN_T, "tiny_patch4_window7_224")
SWIN_S_224 = swin("Swin-S", "swin-s-p4-w7-224", SWIN_S, "small_patch4_window7_224")
SWIN_B_384 = swin("Swin-B", "swin-b-p4-w12-384", SWIN_B, "base_patch4_window12_384")
SWIN_B_384_22K = swin("Swin-B (ImageNet-22k)", "swin-b-p4-w12-384-in21k", SWIN_B, "base_patch4_window12_384_22k")
SWIN_L_384_22K = swin("Swin-L (ImageNet-22k)", "swin-l-p4-w12-384-in21k", SWIN_L, "large_patch4_window12_384_22k")
