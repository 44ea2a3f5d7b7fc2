import io
import struct

import numpy as np
import pytest
from image_files import encode, picture
from PIL import Image, ImageCms

from uge.data import colour, images
from uge.data.pixels import decode


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


WHITE = fixed(0.9642, 1.0, 0.8249)


def profile(space: bytes, gamma: float, **primaries: tuple[float, ...]) -> bytes:
    """ICC profile (version 2) of a display with white D50, this gamma and these primaries as XYZ."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    parts = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"made" + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + WHITE,
        **{f"{name}XYZ".encode(): b"XYZ " + bytes(4) + fixed(*value) for name, value in primaries.items()},
        **{f"{name}TRC".encode(): curve for name in primaries or "k"},
    }
    start = 128 + 4 + 12 * len(parts)
    table = body = b""
    for tag, content in parts.items():
        padded = content + bytes(-len(content) % 4)
        table += tag + struct.pack(">II", start + len(body), len(padded))
        body += padded
    rest = struct.pack(">I", len(parts)) + table + body
    head = struct.pack(">I4sI4s4s4s", 128 + len(rest), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + WHITE + bytes(48) + rest


WIDE = profile(b"RGB ", 2.2, r=(0.6097, 0.3111, 0.0195), g=(0.2053, 0.6257, 0.0609), b=(0.1492, 0.0632, 0.7446))
GRAY = profile(b"GRAY", 1.4)
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


@pytest.mark.parametrize("mode", ["P", "LA", "L", "CMYK"])
def test_other_modes_keep_their_alpha_and_size(mode: str) -> None:
    image = Image.fromarray(picture(4)).convert("RGB").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG", icc_profile=GRAY if mode in ("L", "LA") else WIDE)
    seen = decode(buffer.getvalue(), "x")
    plain = np.asarray(image if mode in ("L", "LA") else image.convert("RGB")).reshape(8, 8, -1)
    assert seen.shape == plain.shape
    if mode == "LA":
        assert (seen[:, :, 1] == 255).all()
    if mode != "CMYK":  # The profile is one of lights and not of inks.
        assert np.abs(seen.astype(int) - plain).max() > 5


@pytest.mark.parametrize("stored", [SRGB, b"damage", WIDE[:200], b""])
def test_srgb_and_damaged_profiles_change_nothing(stored: bytes) -> None:
    pixels = picture(2)
    assert np.array_equal(decode(encode(pixels, icc_profile=stored), "x"), pixels)


def test_a_profile_of_other_channels_changes_nothing() -> None:
    gray = picture(3, channels=1)
    assert np.array_equal(decode(encode(gray, icc_profile=WIDE), "x"), gray)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_large_image_with_a_profile_is_converted_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours change in place: no second copy of a photograph is made, whichever way it takes."""
    pixels = picture(5, channels=len(mode))
    data = encode(pixels, icc_profile=GRAY if mode == "L" else WIDE)
    common = decode(data, "x")
    monkeypatch.setattr(images, "LARGE", 10)
    large = decode(data, "x")
    assert not large.flags.owndata
    np.testing.assert_array_equal(large, common)
    assert np.abs(large.astype(int) - pixels).max() > 5
