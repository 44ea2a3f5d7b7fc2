import io
import struct

import numpy as np
import pytest
from image_files import encode, picture
from PIL import Image, ImageCms

from uge.data import colour
from uge.data.pixels import decode


def profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...], gamma: float) -> bytes:
    """ICC profile (version 2) of an RGB display with these primaries as XYZ, and white D50."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    white = (0.9642, 1.0, 0.8249)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    name = b"made"
    parts = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(1 + 78),
        b"cprt": b"text" + bytes(4) + b"none" + bytes(4),
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
        **{
            tag: b"XYZ " + bytes(4) + fixed(*value)
            for tag, value in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    start = 128 + 4 + 12 * len(parts)
    table = body = b""
    for tag, content in parts.items():
        padded = content + bytes(-len(content) % 4)
        table += tag + struct.pack(">II", start + len(body), len(padded))
        body += padded
    rest = struct.pack(">I", len(parts)) + table + body
    head = struct.pack(">I4sI4s4s4s", 128 + len(rest), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + fixed(*white) + bytes(48) + rest


WIDE = profile((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446), 2.2)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_wide_gamut_becomes_srgb(form: str, caplog: pytest.LogCaptureFixture) -> None:
    colour._note_once.cache_clear()
    data = encode(picture(0), form, icc_profile=WIDE)
    with Image.open(io.BytesIO(data)) as image:
        wanted = ImageCms.profileToProfile(
            image.convert("RGB"), ImageCms.ImageCmsProfile(io.BytesIO(WIDE)), ImageCms.createProfile("sRGB")
        )
        stored = np.asarray(image.convert("RGB"))
    seen = decode(data, "x")
    np.testing.assert_array_equal(seen, np.asarray(wanted))
    assert np.abs(seen.astype(int) - stored).max() > 20
    assert "colour profile other than sRGB; they are converted to sRGB" in caplog.text


def test_alpha_stays_and_colours_are_converted() -> None:
    pixels = picture(1, channels=4)
    seen = decode(encode(pixels, icc_profile=WIDE), "x")
    np.testing.assert_array_equal(seen[:, :, 3], pixels[:, :, 3])
    np.testing.assert_array_equal(seen[:, :, :3], decode(encode(pixels[:, :, :3], icc_profile=WIDE), "x"))


@pytest.mark.parametrize("stored", [SRGB, b"damage", WIDE[:200], b""])
def test_srgb_and_damaged_profiles_change_nothing(stored: bytes) -> None:
    pixels = picture(2)
    assert np.array_equal(decode(encode(pixels, icc_profile=stored), "x"), pixels)


def test_a_profile_of_other_channels_changes_nothing() -> None:
    gray = picture(3, channels=1)
    assert np.array_equal(decode(encode(gray, icc_profile=WIDE), "x"), gray)
