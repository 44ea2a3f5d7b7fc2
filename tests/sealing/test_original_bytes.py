"""Sealed bytes of an original: the same pixels, no metadata."""

import io
import struct
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from uge.data.images import Pixels, Strips
from uge.data.pixels import decode
from uge.errors import DataError
from uge.sealing.originals import original_bytes

SECRET = b"SECRET-PLACE"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a b="' + SECRET + b'"/></x:xmpmeta>'
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
PHOTOS = sorted(
    str(path) for path in Path(str(resources.files("skimage") / "data")).glob("*") if path.suffix in (".png", ".jpg")
)


def exif(orientation: int = 1) -> bytes:
    """EXIF with GPS, a thumbnail's bytes and a camera's name."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.Make] = SECRET.decode()
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = SECRET
    return tags.tobytes() + SECRET


def picture(height: int, width: int, mode: str, seed: int = 0) -> Image.Image:
    channels = {"1": 1, "L": 1, "P": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width), dtype=np.uint16))
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(pixels[..., 0]).convert(mode)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def stored(data: bytes) -> tuple[str, bytes, object]:
    """Pixels as any program reads them, without regard to their orientation, and what says their colours."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        colours = image.info.get("icc_profile"), image.info.get("transparency"), image.getpalette()
        return image.mode, image.tobytes(), colours


def sealed(data: bytes) -> tuple[bytes, str]:
    return original_bytes(data, decode(data, "it"))


def check_kept(data: bytes, ending: str) -> bytes:
    """The sealed bytes, which have the same stored pixels, nothing secret, and are sealed as they stand."""
    kept, kind = sealed(data)
    assert kind == ending
    assert stored(kept) == stored(data)
    assert np.array_equal(decode(kept, "sealed"), decode(data, "original"))
    assert SECRET not in kept
    assert sealed(kept) == (kept, ending)
    return kept


def check_rewritten(data: bytes, ending: str) -> None:
    """The sealed bytes are another file of the upright pixels, which nothing turns any more."""
    kept, kind = sealed(data)
    assert kind == ending
    pixels = decode(data, "original")
    with Image.open(io.BytesIO(kept)) as image:
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    assert SECRET not in kept


sides = st.integers(1, 40)
seeds = st.integers(0, 99)
orientations = st.integers(1, 8)


@given(
    sides,
    sides,
    st.sampled_from(["L", "RGB", "CMYK"]),
    seeds,
    orientations,
    st.fixed_dictionaries(
        {"progressive": st.booleans(), "quality": st.integers(1, 100), "subsampling": st.integers(0, 2)},
        optional={"restart_marker_blocks": st.integers(1, 3), "icc_profile": st.just(PROFILE)},
    ),
    st.booleans(),
)
def test_a_jpeg_keeps_pixels_colours_and_orientation_alone(
    height: int, width: int, mode: str, seed: int, orientation: int, options: dict[str, Any], keep_rgb: bool
) -> None:
    if mode == "RGB" and keep_rgb:
        options |= {"keep_rgb": True, "subsampling": 0}
    data = saved(picture(height, width, mode, seed), "JPEG", exif=exif(orientation), xmp=XMP, comment=SECRET, **options)
    kept = check_kept(data + SECRET, "jpg")
    with Image.open(io.BytesIO(kept)) as image:
        assert dict(image.getexif()) == ({ExifTags.Base.Orientation: orientation} if orientation > 1 else {})
        assert not {"xmp", "comment"} & image.info.keys()


@given(sides, sides, st.sampled_from(["1", "L", "P", "I;16", "LA", "RGB", "RGBA"]), seeds, st.booleans())
def test_a_png_keeps_its_pixels_alone(height: int, width: int, mode: str, seed: int, coloured: bool) -> None:
    text = PngInfo()
    text.add_text("place", SECRET.decode())
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    options: dict[str, Any] = {"icc_profile": PROFILE} if coloured and mode in ("RGB", "RGBA") else {}
    if mode == "P":
        options["transparency"] = 3
    elif mode == "RGB" and not coloured:
        options["transparency"] = (1, 2, 3)
    data = saved(picture(height, width, mode, seed), "PNG", pnginfo=text, exif=exif(), **options)
    kept = check_kept(data + SECRET, "png")
    assert (b"tRNS" in kept) == ("transparency" in options)


@given(sides, sides, st.sampled_from(["RGB", "RGBA"]), seeds, st.booleans(), st.booleans())
def test_a_webp_keeps_its_pixels_alone(
    height: int, width: int, mode: str, seed: int, lossless: bool, coloured: bool
) -> None:
    options: dict[str, Any] = {"icc_profile": PROFILE} if coloured else {}
    data = saved(
        picture(height, width, mode, seed), "WEBP", lossless=lossless, exact=True, exif=exif(), xmp=XMP, **options
    )
    kept = check_kept(data + SECRET, "webp")
    assert struct.unpack_from("<I", kept, 4)[0] + 8 == len(kept)


@given(sides, sides, st.integers(2, 8), st.sampled_from(["PNG", "WEBP"]))
def test_a_turned_png_or_webp_becomes_upright(height: int, width: int, orientation: int, form: str) -> None:
    data = saved(picture(height, width, "RGB"), form, lossless=True, exif=exif(orientation))
    check_rewritten(data, "webp")


def test_an_orientation_by_xmp_alone_is_kept() -> None:
    turn = XMP.replace(b"<a ", b'<a tiff:Orientation="6" ')
    jpeg = check_kept(saved(picture(5, 9, "RGB"), "JPEG", xmp=turn), "jpg")
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.getexif()[ExifTags.Base.Orientation] == 6
    check_rewritten(saved(picture(5, 9, "RGB"), "WEBP", lossless=True, xmp=turn), "webp")


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF"])
def test_of_an_animation_the_first_picture_is_sealed(form: str) -> None:
    frames = [picture(8, 8, "RGB", seed) for seed in range(3)]
    check_rewritten(saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True), "webp")


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM", "GIF"])
def test_other_formats_become_lossless(form: str) -> None:
    check_rewritten(saved(picture(7, 5, "RGB"), form), "webp")


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM"])
def test_gray_of_other_formats_becomes_png(form: str) -> None:
    check_rewritten(saved(picture(7, 5, "L"), form), "png")


@given(sides, sides, st.integers(1, 4), seeds)
def test_arrays_become_lossless(height: int, width: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    data, ending = original_bytes(None, pixels)
    assert (ending == "png") == (channels <= 2 or (channels == 4 and bool((pixels[..., 3] == 255).all())))
    assert np.array_equal(decode(data, "it"), pixels)


@pytest.mark.parametrize("shape", [(2, 16384, 3), (2049, 2049, 3)])
def test_arrays_that_webp_cannot_hold_or_that_are_large_become_png(shape: tuple[int, ...]) -> None:
    pixels: Pixels = np.broadcast_to(np.arange(shape[1], dtype=np.uint8)[:, None], shape)
    data, ending = original_bytes(None, Strips.of(pixels) if shape[0] > 2 else np.ascontiguousarray(pixels))
    assert ending == "png"
    assert np.array_equal(decode(data, "it"), pixels)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: Path(path).name)
def test_photographs_of_a_library_keep_their_pixels(path: str) -> None:
    check_kept(Path(path).read_bytes(), Path(path).suffix[1:])


def test_a_clean_file_is_sealed_as_it_stands() -> None:
    for form, ending in ENDINGS.items():
        data = saved(picture(9, 7, "RGB"), form)
        assert sealed(data) == (data, ending)


@pytest.mark.parametrize("form", ENDINGS)
def test_a_cut_file_is_refused_at_every_length(form: str) -> None:
    data = saved(picture(3, 5, "RGB"), form, exif=exif(), icc_profile=PROFILE[:200])
    for length in range(12, len(data)):
        with pytest.raises(DataError, match=r"cannot seal cat/1: its \w+ file is cut off or damaged; replace"):
            original_bytes(data[:length], np.zeros((3, 5, 3), np.uint8), name="cat/1")


@given(st.sampled_from(list(ENDINGS)), st.data())
def test_damage_is_refused_or_sealed_never_another_error(form: str, draw: st.DataObject) -> None:
    data = bytearray(saved(picture(3, 5, "RGB"), form, exif=exif(6)))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(12, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        kept, _ = original_bytes(bytes(data), np.zeros((3, 5, 3), np.uint8))
    except DataError:
        return
    assert kept


def test_marks_of_a_jpeg_stay_without_thumbnails_and_additions() -> None:
    data = saved(picture(8, 8, "CMYK"), "JPEG")
    adobe = data.index(b"Adobe")
    length = struct.unpack_from(">H", data, adobe - 2)[0]
    longer = data[: adobe - 2] + struct.pack(">H", length + len(SECRET)) + data[adobe : adobe + length - 2] + SECRET
    check_kept(longer + data[adobe + length - 2 :], "jpg")
    jfif = b"JFIF\0\1\2\0\0\1\0\1\2\2" + SECRET
    extension = b"JFXX\0\x10" + SECRET
    plain = saved(picture(8, 8, "RGB"), "JPEG")
    first = 4 + struct.unpack_from(">H", plain, 4)[0]
    parts = [b"\xff\xe0" + struct.pack(">H", len(part) + 2) + part for part in (jfif, extension)]
    kept = check_kept(b"\xff\xd8" + b"".join(parts) + b"\xff\xff\xff" + plain[first + 1 :], "jpg")
    assert kept[6:20] == b"JFIF\0\1\2\0\0\1\0\1\0\0"
    assert b"Adobe" in sealed(data)[0]


def test_parts_of_other_programs_go_and_needed_unknown_ones_make_a_new_file() -> None:
    def chunk(kind: bytes) -> bytes:
        return struct.pack(">I", len(SECRET)) + kind + SECRET + struct.pack(">I", zlib.crc32(kind + SECRET))

    data = saved(picture(8, 8, "RGB"), "PNG")
    end = data.index(b"IEND") - 4
    check_kept(data[:end] + chunk(b"prVt") + data[end:], "png")
    with_needed = data[:end] + chunk(b"NEED") + data[end:]
    assert original_bytes(with_needed, decode(data, "it"))[1] == "webp"
    webp = saved(picture(8, 8, "RGB"), "WEBP", lossless=True, icc_profile=PROFILE)
    body = webp[8:] + struct.pack("<4sI", b"priv", len(SECRET)) + SECRET
    check_kept(b"RIFF" + struct.pack("<I", len(body)) + body, "webp")


@pytest.mark.parametrize(
    ("form", "ending"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("PPM", "ppm"),
    ],
)
def test_every_byte_stays_where_metadata_is_kept(form: str, ending: str) -> None:
    image = picture(8, 8, "RGB")
    data = saved(image, form, **({"exif": exif(6)} if form in (*ENDINGS, "TIFF") else {})) + SECRET
    assert original_bytes(data, np.asarray(image), keep_metadata=True) == (data, ending)
