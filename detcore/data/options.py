"""The options that name the files and the classes of one's own data, for training, evaluation and benchmarks."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from detcore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the files of a data set are if not where they are looked for, and what its classes are called.

    Attributes:
        train_annotations, val_annotations: files of COCO's form, from the data set's folder or from here on.
        image_folder: folder of the pictures, from the data set's folder or from here on; a picture is found there by
            the name that the annotations give it, or by the last part of that name in any folder below.
        holdout: share of the training images that are kept out of the training and make up the validation images. A
            hash of its file's name decides on each image, so that all commands agree.
        rename: names of classes in the data, and the names that are used in their place.
        skip_unlisted: leave out annotations of categories or images that their file does not list, with a warning.
        ignore_exif: read pictures as they are stored, whatever their EXIF orientation says: for boxes made on those.

    Raises:
        UsageError: a share that is not between 0 and 1, a new name that is not text.
    """

    train_annotations: str | Path | None = None
    val_annotations: str | Path | None = None
    image_folder: str | Path | None = None
    holdout: float | None = None
    rename: Mapping[str, str] | Iterable[str] | None = None
    skip_unlisted: bool = False
    ignore_exif: bool = False

    def __post_init__(self) -> None:
        share = self.holdout
        if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1):
            raise UsageError(f"The share to hold out (holdout) is above 0 and below 1, such as 0.1, not {share}.")
        if share is not None and self.val_annotations is not None:
            raise UsageError("Give either a share to hold out (holdout) or an annotation file of the validation images "
                             "(val_annotations).")
        object.__setattr__(self, "rename", _names(self.rename))

    @property
    def names(self) -> dict[str, str]:
        """New name by old name."""
        assert isinstance(self.rename, dict)
        return self.rename

    @classmethod
    def take(cls, options: dict[str, Any]) -> DataOptions:
        """Those of the options that are of the data; they are removed from `options`."""
        return cls(**{f.name: options.pop(f.name) for f in fields(cls) if f.name in options})

    def told(self) -> dict[str, Any]:
        """Those that are set, as a record keeps them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: Path(v).name if isinstance(v, (str, Path)) else v for n, v in values.items() if v}


def _names(rename: Any) -> dict[str, str]:
    """A mapping, or texts "OLD=NEW", as new name by old name."""
    if rename is None:
        return {}
    if not isinstance(rename, Mapping):
        pairs = [rename] if isinstance(rename, str) else list(rename)
        wrong = next((pair for pair in pairs if not isinstance(pair, str) or "=" not in pair), None)
        if wrong is not None:
            raise UsageError(f"A class is renamed by OLD=NEW, not by {wrong!r}.")
        rename = dict(pair.split("=", 1) for pair in pairs)
    if not all(isinstance(text, str) and text for pair in rename.items() for text in pair):
        raise UsageError("Classes are renamed (rename) from a name to a name.")
    return dict(rename)
