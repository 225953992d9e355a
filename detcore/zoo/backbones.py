"""The backbones of the zoo: how each is built, and where its pretrained weights come from.

torchvision's weights are named as torchvision names them; files that were converted from elsewhere are named by their
address, which ends with the first digits of their SHA-256 where it is known.
"""
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from detcore.backbones.darknet import Darknet, leaky
from detcore.backbones.efficientnet import EfficientNet
from detcore.backbones.hourglass import Hourglass
from detcore.backbones.mobilenet import MobileNetV2
from detcore.backbones.regnet import RegNet
from detcore.backbones.resnet import ResNet, resnet_c4, resnet_dc5, resnext
from detcore.backbones.swin import SWIN_B, SWIN_L, SWIN_S, SWIN_T, Size, Swin
from detcore.backbones.vgg import SSDVGG
from detcore.methods.dcn import DeformConv2d
from detcore.methods.weight_standardization import WSConv2d
from detcore.pocket import profile as pocket
from detcore.zoo.entries import Backbone
from detcore.pocket.profile import SLIM, SLIM_GN, SLIM_MOBILENET, SLIM_REGNET, SLIM_VGG, SLIM_WS, slim_resnet
from detcore.zoo.recipes import CAFFE, CAFFE2, DARKNET, PYCLS, TORCHVISION, VGG

FILES = "https://download.openmmlab.com/pretrain/third_party/"
MSRA_50, MSRA_101 = FILES + "resnet50_msra-5891d200.pth", FILES + "resnet101_msra-6cc46731.pth"

R18 = Backbone("ResNet-18", "TorchVision", partial(ResNet, 18), "ResNet18_Weights.IMAGENET1K_V1")
R50 = Backbone("ResNet-50", "TorchVision", partial(ResNet, 50), "ResNet50_Weights.IMAGENET1K_V1")
R50_TNR = Backbone("ResNet-50 (TorchVision's new recipe)", "TorchVision",
                   partial(ResNet, 50), "ResNet50_Weights.IMAGENET1K_V2")
R101 = Backbone("ResNet-101", "TorchVision", partial(ResNet, 101), "ResNet101_Weights.IMAGENET1K_V1")
R50_CAFFE = Backbone("ResNet-50 (Caffe)", "MSRA", partial(ResNet, 50, style="caffe"), MSRA_50, CAFFE)
R101_CAFFE = Backbone("ResNet-101 (Caffe)", "MSRA", partial(ResNet, 101, style="caffe"), MSRA_101, CAFFE)
SLIM_C4, SLIM_DC5 = (replace(SLIM, build=partial(slim_resnet, layout)) for layout in (resnet_c4, resnet_dc5))
R50_C4 = Backbone("ResNet-50-C4 (Caffe)", "MSRA", partial(resnet_c4, 50), MSRA_50, CAFFE, SLIM_C4)
R50_DC5 = Backbone("ResNet-50-DC5 (Caffe)", "MSRA", partial(resnet_dc5, 50), MSRA_50, CAFFE, SLIM_DC5)
X101_32X4D = Backbone("ResNeXt-101-32x4d", "PyTorch",
                      partial(resnext, 101, 32, 4), FILES + "resnext101_32x4d-a5af3160.pth")
X101_64X4D = Backbone("ResNeXt-101-64x4d", "PyTorch",
                      partial(resnext, 101, 64, 4), FILES + "resnext101_64x4d-ee2c6f71.pth")
X101_32X8D = Backbone("ResNeXt-101-32x8d", "Caffe2",
                      partial(resnext, 101, 32, 8, norm_fixed=True), FILES + "resnext101_32x8d-1516f1aa.pth", CAFFE2)

GN: dict[str, Any] = dict(norm="gn")
WS: dict[str, Any] = dict(norm="gn", conv=WSConv2d)
R50_GN = Backbone("ResNet-50 + GN", "Detectron",
                  partial(ResNet, 50, **GN), FILES + "resnet50_gn-9186a21c.pth", CAFFE, SLIM_GN)
R101_GN = Backbone("ResNet-101 + GN", "Detectron",
                   partial(ResNet, 101, **GN), FILES + "resnet101_gn-cac0ab98.pth", CAFFE, SLIM_GN)
R50_GN_CONTRIB = Backbone("ResNet-50 + GN (contributed)", "PyTorch",
                          partial(ResNet, 50, **GN), FILES + "resnet50_gn_thangvubk-ad1730dd.pth", slim=SLIM_GN)
R50_SCRATCH = Backbone("ResNet-50 + GN (from scratch)", "none",
                       partial(ResNet, 50, frozen_stages=-1, **GN), None, slim=SLIM_GN, pocket_weights=False)
R50_WS = Backbone("ResNet-50 + GN + WS", "PyTorch",
                  partial(ResNet, 50, **WS), FILES + "resnet50_gn_ws-15beedd8.pth", slim=SLIM_WS)
R101_WS = Backbone("ResNet-101 + GN + WS", "PyTorch",
                   partial(ResNet, 101, **WS), FILES + "resnet101_gn_ws-3e3c308c.pth", slim=SLIM_WS)
X50_WS = Backbone("ResNeXt-50-32x4d + GN + WS", "PyTorch",
                  partial(resnext, 50, 32, 4, **WS), FILES + "resnext50_32x4d_gn_ws-0d87ac85.pth", slim=SLIM_WS)
X101_WS = Backbone("ResNeXt-101-32x4d + GN + WS", "PyTorch",
                   partial(resnext, 101, 32, 4, **WS), FILES + "resnext101_32x4d_gn_ws-34ac1a9e.pth", slim=SLIM_WS)


VGG16 = Backbone("VGG-16", "Caffe", SSDVGG, FILES + "vgg16_caffe-292e1171.pth", VGG, SLIM_VGG)
DARKNET53 = Backbone("Darknet-53", "Darknet", Darknet, FILES + "darknet53-a628ea1b.pth", DARKNET, pocket.SLIM_DARKNET)
# YOLOv3's activation instead of the one that the weights were trained with.
MOBILENET_LEAKY = Backbone(
    "MobileNetV2", "PyTorch", partial(MobileNetV2, (2, 4, 6), act=leaky),
    "https://download.openmmlab.com/mmdetection/v2.0/third_party/mobilenet_v2_batch256_imagenet-ff34753d.pth",
    slim=pocket.SLIM_MOBILENET_LEAKY)
EFFICIENTNET_B3 = Backbone(
    "EfficientNet-B3", "TensorFlow", EfficientNet, "https://download.openmmlab.com/mmclassification/v0/efficientnet/"
    "efficientnet-b3_3rdparty_8xb32-aa_in1k_20220119-5b4887a0.pth", slim=pocket.SLIM_EFFICIENTNET)
HOURGLASS104 = Backbone("Hourglass-104 (from scratch)", "none",
                        Hourglass, None, replace(TORCHVISION, pad_to=1, canvas=128), pocket.SLIM_HOURGLASS)
MOBILENET_SCRATCH = Backbone("MobileNetV2 (from scratch)", "none",
                             MobileNetV2, None, replace(TORCHVISION, pad_to=1), SLIM_MOBILENET)


# Batch norm stays as it is; in the others all stages are trained too.
R50_STILL = replace(R50, build=partial(R50.build, norm_fixed=True))
R50_WHOLE, R101_WHOLE = (replace(b, build=partial(b.build, frozen_stages=-1, norm_fixed=True)) for b in (R50, R101))


def swin(name: str, size: Size, file: str) -> Backbone:
    """A Swin Transformer, with the weights of its authors."""
    address = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_"
    return Backbone(name, "Swin", partial(Swin, size), f"{address}{file}.pth", slim=pocket.SLIM_SWIN)


SWIN_T_224 = swin("Swin-T", SWIN_T, "tiny_patch4_window7_224")
SWIN_S_224 = swin("Swin-S", SWIN_S, "small_patch4_window7_224")
SWIN_B_384 = swin("Swin-B", SWIN_B, "base_patch4_window12_384")
SWIN_B_384_22K = swin("Swin-B (ImageNet-22k)", SWIN_B, "base_patch4_window12_384_22k")
SWIN_L_384_22K = swin("Swin-L (ImageNet-22k)", SWIN_L, "large_patch4_window12_384_22k")


def deformed(backbone: Backbone, stages: tuple[int, ...] = (1, 2, 3), **options: Any) -> Backbone:
    """A backbone some of whose stages (c3 to c5) are deformable; options as in `DeformConv2d`."""
    deform: dict[str, Any] = dict(deform=partial(DeformConv2d, **options), deform_stages=stages)
    slim = replace(backbone.slim, build=partial(backbone.slim.build, **deform))
    name = f"{backbone.name} + DCN{'v2' * bool(options.get('modulated'))}"
    return replace(backbone, name=name, build=partial(backbone.build, **deform), slim=slim)


R50_DCN, R101_DCN, X101_DCN = deformed(R50), deformed(R101), deformed(X101_32X4D)
X101_DCN_C4 = deformed(X101_32X4D, stages=(2, 3))
R50_DCN2 = deformed(R50, modulated=True)
R50_DCN2_4 = deformed(R50, modulated=True, offset_groups=4)


def regnet(design: str, digest: str) -> Backbone:
    """A RegNetX, with the weights of its authors, converted."""
    file = "regnetx_" + {"4GF": "4.0gf", "8GF": "8.0gf"}.get(design, design.lower())
    return Backbone(f"RegNetX-{design}", "Pycls",
                    partial(RegNet, design), f"{FILES}{file}-{digest}.pth", PYCLS, SLIM_REGNET)


X400M, X800M = regnet("400MF", "a5b10d96"), regnet("800MF", "1f4be4c7")
X1_6G, X3_2G = regnet("1.6GF", "5791c176"), regnet("3.2GF", "c2599b0f")
X4G, X6_4G = regnet("4GF", "a88f671e"), regnet("6.4GF", "006af45d")
X8G, X12G = regnet("8GF", "3c68abe7"), regnet("12GF", "4c2a3350")
