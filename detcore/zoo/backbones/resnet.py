"""The zoo's ResNets and ResNeXts, and where their pretrained weights are.

torchvision's weights are named as torchvision names them; files that were converted from elsewhere are named by their
address, which ends with the first digits of their SHA-256 where it is known.
"""
from dataclasses import replace
from functools import partial

from detcore.backbones.resnet import ResNet, resnet_c4, resnet_dc5, resnext
from detcore.pocket.slim import SLIM_C4, SLIM_DC5
from detcore.recipe import CAFFE, CAFFE2
from detcore.zoo.entries import CONVERTED, Backbone

MSRA_50, MSRA_101 = CONVERTED + "resnet50_msra-5891d200.pth", CONVERTED + "resnet101_msra-6cc46731.pth"

R18 = Backbone("ResNet-18", "TorchVision", partial(ResNet, 18), "ResNet18_Weights.IMAGENET1K_V1", label="r18")
R50 = Backbone("ResNet-50", "TorchVision", partial(ResNet, 50), "ResNet50_Weights.IMAGENET1K_V1", label="r50")
R50_TNR = replace(R50, name="ResNet-50 (TorchVision's new recipe)", weights="ResNet50_Weights.IMAGENET1K_V2")
R101 = Backbone("ResNet-101", "TorchVision", partial(ResNet, 101), "ResNet101_Weights.IMAGENET1K_V1", label="r101")
R50_CAFFE = Backbone("ResNet-50 (Caffe)", "MSRA",
                     partial(ResNet, 50, style="caffe"), MSRA_50, CAFFE, label="r50-caffe")
R101_CAFFE = Backbone("ResNet-101 (Caffe)", "MSRA",
                      partial(ResNet, 101, style="caffe"), MSRA_101, CAFFE, label="r101-caffe")
R50_C4 = Backbone("ResNet-50-C4 (Caffe)", "MSRA", partial(resnet_c4, 50), MSRA_50, CAFFE, SLIM_C4)
R50_DC5 = Backbone("ResNet-50-DC5 (Caffe)", "MSRA", partial(resnet_dc5, 50), MSRA_50, CAFFE, SLIM_DC5)
X101_32X4D = Backbone("ResNeXt-101-32x4d", "PyTorch", partial(resnext, 101, 32, 4),
                      CONVERTED + "resnext101_32x4d-a5af3160.pth", label="x101-32x4d")
X101_64X4D = Backbone("ResNeXt-101-64x4d", "PyTorch", partial(resnext, 101, 64, 4),
                      CONVERTED + "resnext101_64x4d-ee2c6f71.pth", label="x101-64x4d")
X101_32X8D = Backbone("ResNeXt-101-32x8d", "Caffe2", partial(resnext, 101, 32, 8, norm_fixed=True),
                      CONVERTED + "resnext101_32x8d-1516f1aa.pth", CAFFE2, label="x101-32x8d")
X101 = (X101_32X4D, X101_64X4D)

# Batch norm stays as it is, and all stages are trained.
R50_WHOLE, R101_WHOLE = (replace(b, build=partial(b.build, frozen_stages=-1, norm_fixed=True)) for b in (R50, R101))
