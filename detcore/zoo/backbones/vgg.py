"""VGG-16 in SSD's form."""
from detcore.backbones.vgg import SSDVGG
from detcore.pocket.slim import SLIM_VGG
from detcore.recipe import VGG
from detcore.zoo.entries import CONVERTED, Backbone

VGG16 = Backbone("VGG-16", "Caffe", SSDVGG, CONVERTED + "vgg16_caffe-292e1171.pth", VGG, SLIM_VGG)
