"""How Pocket Zoo is written in the layout of each data set, for the readers of `detcore.data`."""
from __future__ import annotations

from detcore.errors import UsageError
from detcore.pocket.drawn import Writer
from detcore.pocket.writers.cityscapes import CITYSCAPES
from detcore.pocket.writers.coco import COCO
from detcore.pocket.writers.lvis import LVIS
from detcore.pocket.writers.openimages import OPENIMAGES
from detcore.pocket.writers.voc import VOC
from detcore.pocket.writers.widerface import WIDER_FACE

# By the name of the layout that reads it.
WRITERS = {"coco": COCO, "lvis": LVIS, "voc": VOC, "voc-coco": VOC, "cityscapes": CITYSCAPES,
           "openimages": OPENIMAGES, "openimages-challenge": OPENIMAGES, "wider_face": WIDER_FACE}


def get_writer(layout: str) -> Writer:
    """What writes Pocket Zoo in a layout.

    Raises:
        UsageError: it is written in no layout of this name.
    """
    if layout not in WRITERS:
        raise UsageError(f"Pocket Zoo is not drawn in the layout {layout!r}: it is in {', '.join(WRITERS)}.")
    return WRITERS[layout]
