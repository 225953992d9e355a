"""Reading picture files of any usual kind as 8-bit BGR."""
from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from detcore.data.files import open_file
from detcore.errors import DataError
from detcore.records import write_atomically


def read_image(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """Read an image file as uint8 [h, w, 3], BGR, turned as its EXIF orientation says if `upright`.

    Gray, palette, 16-bit and CMYK images become 8-bit colour, transparency is dropped.

    Raises:
        DataError: a file that is missing, cannot be read, is no image, or is cut short.
    """
    with open_file(path, "image file") as file:
        data = file.read()
    image = None
    if _complete(data):
        flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return _decode_slowly(path, data, upright) if image is None else image


def _complete(data: bytes) -> bool:
    """Whether a JPEG or PNG has its end, in the kinds that OpenCV is trusted with; it reads a torso without a word."""
    if data[:3] == b"\xff\xd8\xff":
        # Inside the coded picture ff is never followed by d9, so the last end must follow the last start of scan.
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" in data[-64:]
    return False


def _decode_slowly(path: str | Path, data: bytes, upright: bool) -> np.ndarray:
    """Decode with Pillow, which knows more formats and is strict about their ends."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as file:
            warnings.simplefilter("ignore")
            file.load()
            picture = ImageOps.exif_transpose(file) if upright else file
            if picture.mode.startswith("I") or picture.mode == "F":
                # 16 bits: the upper eight, as OpenCV does.
                array = np.asarray(picture, np.float64)
                gray = (array / 256 if array.max(initial=0) > 255 else array).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[..., None], 3, 2)
            return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image file.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"The image file {path} is damaged: {error}.") from error


LARGEST_MAP = 40_000_000  # pixels of a map of classes or instances


def read_map(path: Path, what: str, size: tuple[int, int] | None = None, *, colour: bool = False) -> np.ndarray:
    """A picture of numbers as it is in its file: [h, w], or uint8 [h, w, 3], BGR, if `colour`.

    Args:
        what: what messages call it.
        size: (h, w) that it must have; looked at before it is decoded.

    Raises:
        DataError: it is missing, broken, of another size or too large.
    """
    height, width = picture_size(path, upright=False, what=what)
    if size is not None and (height, width) != tuple(size):
        raise DataError(f"The {what} {path} has {width} x {height} pixels, but the image has {size[1]} x {size[0]}.")
    if height * width > LARGEST_MAP:
        raise DataError(f"The {what} {path} has {width} x {height} pixels; {LARGEST_MAP:,} are read at most.")
    values = None
    with suppress(cv2.error):
        values = cv2.imread(str(path), cv2.IMREAD_COLOR if colour else cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2 + colour or values.dtype.kind not in "ui" or values.shape[:2] != (
            height, width):
        raise DataError(f"The {what} {path} cannot be read.")
    return values


SAVED = 50_000  # pictures whose sizes are read between two writes of the file that keeps them


def picture_size(path: Path, upright: bool = True, what: str = "image file") -> tuple[int, int]:
    """(h, w) of a picture from its file's head, turned as its EXIF orientation says if `upright`.

    Raises:
        DataError: the picture is missing or broken.
    """
    try:
        with Image.open(path) as image:
            lies = upright and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if lies else (image.height, image.width)
    except FileNotFoundError:
        raise DataError(f"There is no {what} {path}.") from None
    except Exception as error:  # whatever Pillow raises of a broken file
        raise DataError(f"The {what} {path} cannot be read: {str(error)[:200]}.") from error


def picture_sizes(folder: Path, files: Sequence[str], kept: Path, *, upright: bool = True,
                  stamps: Sequence[object] = ()) -> np.ndarray:
    """int32 [n, 2], (h, w) of pictures, from their files' heads, or from the file `kept` of an earlier time.

    Args:
        upright: see `picture_size`.
        stamps: what else must be as it was when the sizes were kept.

    Raises:
        DataError: a picture is missing or broken.
    """
    told = [*files, *map(str, stamps), *([] if upright else ["as stored"])]
    digest = hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()
    sizes = np.zeros((len(files), 2), np.int32)
    with suppress(Exception):  # there is none, or it is of no use, for whatever reason
        with np.load(kept, allow_pickle=False) as file:
            found = file["sizes"]
            if (str(file["digest"]) == digest and found.shape == sizes.shape and found.dtype == sizes.dtype
                    and (found >= 0).all()):
                sizes = found.copy()

    def read(index: int) -> tuple[int, int]:
        return picture_size(folder / files[index], upright)

    left = np.flatnonzero((sizes == 0).any(1))
    with ThreadPoolExecutor(16) as pool, tqdm(total=len(left), desc=f"sizes of {folder.name}", unit="img", leave=False,
                                              delay=3) as bar:
        for start in range(0, len(left), SAVED):
            part = left[start:start + SAVED]
            try:
                for index, size in zip(part, pool.map(read, part.tolist())):
                    sizes[index] = size
                    bar.update()
            finally:
                _keep(kept, sizes, digest)
    return sizes


def _keep(path: Path, sizes: np.ndarray, digest: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, sizes=sizes, digest=np.array(digest))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        warnings.warn(f"The sizes of the pictures cannot be kept in {path} ({error.strerror}): they will be read "
                      f"anew.", stacklevel=4)
