"""Reading pictures: every mode and depth, and what is refused before it is decoded."""
from __future__ import annotations

import io
import os
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from detcore.data import images
from detcore.data.images import pil_to_bgr, read_image
from detcore.errors import DataError, UsageError

DEEP = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)


def colours() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 4), np.uint8)
    return Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2))


def picture(mode: str) -> Image.Image:
    match mode:
        case "I;16" | "I;16L":
            return Image.frombytes(mode, (80, 60), DEEP.astype("<u2").tobytes())
        case "I;16B":
            return Image.frombytes(mode, (80, 60), DEEP.astype(">u2").tobytes())
        case "I;16N":
            return Image.frombytes(mode, (80, 60), DEEP.tobytes())
        case "I" | "F":
            return Image.fromarray(DEEP.astype(np.int32 if mode == "I" else np.float32))
        case "F 0..1":
            return Image.fromarray((DEEP / 65535).astype(np.float32))
        case "F 0..255":
            return Image.fromarray((DEEP / 257).astype(np.float32))
        case "CMYK":
            return Image.frombytes("CMYK", (80, 60), colours().tobytes())
        case "PA":
            return colours().convert("RGB").convert("P").convert("PA")
        case "RGBA" | "LA" | "RGBa":
            return colours().convert(mode)
        case "La":
            return colours().convert("LA").convert("La")
        case _:
            return colours().convert("RGB").convert(mode)


@pytest.mark.parametrize("form", ["png", "tiff", "webp"])
@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I", "F", "F 0..1", "F 0..255", "1", "L", "P",
                                  "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_a_pil_image_is_read_as_the_file_saved_from_it(mode, form, tmp_path) -> None:
    try:
        picture(mode).save(tmp_path / f"a.{form}", **(dict(lossless=True) if form == "webp" else {}))
    except OSError:
        return  # Pillow does not write this mode so
    if form != "webp" or mode in ("RGB", "RGBA", "L", "1"):  # it writes the others in other colours
        np.testing.assert_array_equal(pil_to_bgr(picture(mode)), read_image(tmp_path / f"a.{form}"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_pil_opened_is_read_as_the_file(mode, tmp_path) -> None:
    picture(mode).save(tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as opened:
        np.testing.assert_array_equal(pil_to_bgr(opened), read_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I", "F", "F 0..1", "F 0..255"])
def test_deep_gray_keeps_its_brightness(mode) -> None:
    read = pil_to_bgr(picture(mode))
    assert read.shape == (60, 80, 3) and read.dtype == np.uint8
    assert np.abs(read[..., 0] - DEEP / 256).max() < 2


def test_floats_that_are_not_finite_are_black() -> None:
    values = np.array([[0.5, np.nan], [np.inf, 1.0]], np.float32)
    assert pil_to_bgr(Image.fromarray(values))[..., 0].tolist() == [[128, 0], [0, 255]]


def test_transparency_that_colours_were_multiplied_by_is_undone() -> None:
    for mode in ("La", "RGBa"):
        one = Image.new("RGBA", (2, 2), (200, 200, 200, 128)).convert("LA" if mode == "La" else "RGBA").convert(mode)
        assert np.abs(pil_to_bgr(one).astype(int) - 200).max() <= 1


def png(width: int, height: int, depth: int = 1) -> bytes:
    """A black gray PNG, made row by row."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + -(-width * depth // 8))) for _ in range(min(height, 100)))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)), (b"IDAT", rows + packer.flush()),
             (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG with a preview inside whose head tells another size than its own."""
    data, preview = io.BytesIO(), io.BytesIO()
    colours().convert("RGB").resize((16, 16)).save(preview, "JPEG")
    colours().convert("RGB").save(data, "JPEG", exif=b"Exif\0\0" + preview.getvalue())
    file = bytearray(data.getvalue())
    at = file.rfind(b"\xff\xc0")
    file[at + 5:at + 9] = struct.pack(">HH", height, width)
    return bytes(file)


def declared(form: str, **options) -> bytes:
    """A file whose head says 50,000 squared."""
    data = io.BytesIO()
    Image.new("L", (7, 9)).save(data, form, **options)
    file = data.getvalue()
    match form:
        case "BMP":
            return file[:18] + struct.pack("<ii", 50_000, 50_000) + file[26:]
        case "GIF":
            return file[:6] + struct.pack("<HH", 50_000, 50_000) + file[10:]
        case "PPM":
            return file.replace(b"7 9", b"50000 50000", 1)
        case _:  # TIFF: tags 256 and 257 of type long
            for tag, value in ((256, 7), (257, 9)):
                for kind, packed in ((3, struct.pack("<HH", value, 0)), (4, struct.pack("<I", value))):
                    file = file.replace(struct.pack("<HHI", tag, kind, 1) + packed,
                                        struct.pack("<HHII", tag, 4, 1, 50_000))
            return file


@pytest.mark.parametrize("file", [png(30_000, 30_000), png(50_000, 50_000, 16), png(2**31 - 1, 1), jpeg(60_000, 60_000),
                                  *map(declared, ("BMP", "GIF", "PPM", "TIFF"))],
                         ids=["1 bit", "16 bits", "wide", "jpeg", "bmp", "gif", "ppm", "tiff"])
def test_too_many_pixels_are_told_from_the_head(file, tmp_path) -> None:
    (tmp_path / "large").write_bytes(file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"large has \d+ x \d+ pixels, but at most 268,435,456 are read"):
        read_image(tmp_path / "large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_the_limit_can_be_set(tmp_path, monkeypatch) -> None:
    colours().save(tmp_path / "a.png")
    monkeypatch.setenv("DETCORE_MAX_PIXELS", "4799")
    with pytest.raises(DataError, match="80 x 60 pixels, but at most 4,799"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("DETCORE_MAX_PIXELS", "4800")
    assert read_image(tmp_path / "a.png").shape == (60, 80, 3)
    for wrong in ("0", "-1", "many", "1e9"):
        monkeypatch.setenv("DETCORE_MAX_PIXELS", wrong)
        with pytest.raises(UsageError, match="DETCORE_MAX_PIXELS is a whole number"):
            read_image(tmp_path / "a.png")


def test_one_limit_holds_for_all_forms(tmp_path, monkeypatch) -> None:
    """Pillow's own is lower, and is put back."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for form in ("png", "bmp", "tiff"):
        colours().convert("RGB").save(tmp_path / f"a.{form}")
        assert read_image(tmp_path / f"a.{form}").shape == (60, 80, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_jpegs_own_size_is_found_behind_its_preview(tmp_path) -> None:
    assert images._declared(jpeg(80, 60)) == (80, 60)
    (tmp_path / "a.jpg").write_bytes(jpeg(80, 60))
    assert read_image(tmp_path / "a.jpg").shape == (60, 80, 3)


def test_what_is_no_file_is_told_at_once(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(DataError, match="is a pipe or a device, not a file"):
            read_image(path)
    with pytest.raises(DataError, match="directory"):
        read_image(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_image("a\0.png")
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(2**31 + 1)  # without a byte on the disk
    with pytest.raises(DataError, match=r"large\.jpg has more than 2 GiB"):
        read_image(tmp_path / "large.jpg")


def test_damaged_files_are_sentences(tmp_path) -> None:
    sound = []
    for form in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        data = io.BytesIO()
        colours().convert("RGB").resize((20, 15)).save(data, form)
        sound.append(data.getvalue())
    rng, path = np.random.default_rng(0), tmp_path / "damaged"
    for file in sound:
        for _ in range(60):
            data = bytearray(file[:rng.integers(1, len(file))] if rng.random() < 0.3 else file)
            for at in rng.integers(0, min(len(data), 200), rng.integers(1, 4)):
                data[at] = rng.integers(256)
            path.write_bytes(data)
            try:
                assert read_image(path).dtype == np.uint8
            except DataError as error:
                assert "damaged" in str(error)
