"""Backbones: images in, feature maps of several strides out, whose numbers of channels are the attribute `channels`."""
