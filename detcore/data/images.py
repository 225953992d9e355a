"""Reading picture files of any usual kind as 8-bit BGR."""
from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from detcore.data.files import open_file
from detcore.errors import DataError, DetcoreError, UsageError
from detcore.records import write_atomically

# Pictures whose head declares more pixels are refused before they are decoded: 16,384 squared, 0.8 GB as 8-bit colour.
MAX_PIXELS = 2**28
MAX_BYTES = 2**31  # of a picture file
_PILLOW_LIMIT = threading.Lock()
# Pillow's doubts about large pictures and damaged EXIF blocks are answered here. Once for all, because pictures are
# read in threads, and `warnings.catch_warnings` in one thread loses the warnings of another.
warnings.filterwarnings("ignore", module=r"PIL\.")


def pixel_limit() -> int:
    """The most pixels of a picture: `MAX_PIXELS`, or what the environment variable DETCORE_MAX_PIXELS says.

    Raises:
        UsageError: it is no whole number of at least 1.
    """
    told = os.environ.get("DETCORE_MAX_PIXELS", "")
    if told and not (told.isascii() and told.isdigit() and int(told)):
        raise UsageError(f"DETCORE_MAX_PIXELS is a whole number of at least 1, not {told!r}.")
    return int(told or MAX_PIXELS)


def check_pixels(what: object, width: int, height: int) -> None:
    """Raise a DataError, which calls the picture `what`, where it has no pixel or more than are read."""
    if width < 1 or height < 1:
        raise DataError(f"{what} has no pixels: its size is {width} x {height}.")
    if width * height > (limit := pixel_limit()):
        raise DataError(f"{what} has {width} x {height} pixels, but at most {limit:,} are read: make it smaller, or "
                        f"set the environment variable DETCORE_MAX_PIXELS to a greater number.")


def read_image(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """Read an image file as uint8 [h, w, 3], BGR, turned as its EXIF orientation says if `upright`.

    Gray, palette, 16-bit, floating-point and CMYK images become 8-bit colour as `pil_to_bgr` says, transparency is
    dropped.

    Raises:
        DataError: a file that is missing, cannot be read, is no image, is cut short, or declares more pixels than
            `MAX_PIXELS`.
    """
    with open_file(path, "image file") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise DataError(f"The image file {path} has more than {MAX_BYTES / 2**30:g} GiB, which is not read.")
        data = file.read()
    image = None
    if _complete(data) and (size := _declared(data)):
        check_pixels(path, *size)
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


def _declared(data: bytes) -> tuple[int, int] | None:
    """(width, height) by the head of a JPEG or PNG; None where it does not tell them."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack_from(">II", data, 16) if len(data) >= 24 else (0, 0)
        return (width, height) if data[12:16] == b"IHDR" else None
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) <= len(data) - 9:
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # these have no length
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Lets Pillow take pictures above its own limit, which is lower than ours."""
    with _PILLOW_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def open_picture(what: object, data: IO[bytes]) -> Image.Image:
    """A picture whose head alone Pillow has read, of at most `MAX_PIXELS` pixels.

    Raises:
        DataError: which calls it `what`, for what is no image, is damaged or too large.
    """
    try:
        try:
            picture = Image.open(data)
        except Image.DecompressionBombError:
            with _without_pillows_limit():
                data.seek(0)
                picture = Image.open(data)
    except UnidentifiedImageError:
        raise DataError(f"{what} is not an image file.") from None
    except Exception as error:  # there is no end to the ways in which a damaged picture fails
        raise DataError(f"The image file {what} is damaged: {_reason(error)}.") from error
    check_pixels(what, *picture.size)
    return picture


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _decode_slowly(path: str | Path, data: bytes, upright: bool) -> np.ndarray:
    """Decode with Pillow, which knows more formats and is strict about their ends."""
    try:
        with open_picture(path, io.BytesIO(data)) as file:
            large = Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS
            with _without_pillows_limit() if large else nullcontext():
                return pil_to_bgr(file, upright=upright)
    except DetcoreError:
        raise
    except Exception as error:
        raise DataError(f"The image file {path} is damaged: {_reason(error)}.") from error


def pil_to_bgr(picture: Image.Image, *, upright: bool = True) -> np.ndarray:
    """A Pillow picture of any mode as uint8 [h, w, 3], BGR, as `read_image` gives the file saved from it.

    Of 16 bits the upper eight are taken, as OpenCV does; of 32 bits the same where a value is above 255. Floating-point
    values are taken on the scale 0..1 where none is above 1, on 0..255 where none is above that, else on 0..65535; what
    is not finite is black. Transparency is dropped.

    Raises what Pillow raises for a picture that it cannot decode or convert.
    """
    picture.load()
    if upright:
        with suppress(Exception):  # a damaged EXIF block turns nothing
            picture = ImageOps.exif_transpose(picture)
    mode = picture.mode
    if mode.startswith("I;16"):
        gray = (np.asarray(picture) >> 8).astype(np.uint8)
    elif mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(picture, np.float64), copy=False, posinf=0, neginf=0)
        greatest = values.max(initial=0)
        if greatest > 255:
            values /= 256
        elif mode == "F" and greatest <= 1:
            values = np.round(values * 255)
        gray = values.clip(0, 255).astype(np.uint8)
    elif mode == "CMYK":
        ink = 255 - np.asarray(picture)[..., 3:].astype(np.uint16)
        bgr = np.asarray(picture)[..., 2::-1]
        return (ink - (bgr * ink >> 8)).astype(np.uint8)  # in OpenCV's rounding
    else:
        if mode in ("La", "RGBa"):  # multiplied by their transparency
            picture = picture.convert(mode.upper())
        return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])
    return np.repeat(gray[..., None], 3, 2)


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
    with open_file(path, what) as file, open_picture(path, file) as image:
        try:
            lies = upright and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception as error:  # whatever Pillow raises of a broken head
            raise DataError(f"The {what} {path} cannot be read: {_reason(error)[:200]}.") from error
        return (image.width, image.height) if lies else (image.height, image.width)


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
