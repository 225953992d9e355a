"""Functions on tensors that several methods share: boxes, anchors, matching, losses, NMS, masks."""
