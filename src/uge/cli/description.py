"""Readable text of what ``uge inspect`` found; ``--json`` has all of it."""

from collections.abc import Iterator, Mapping
from typing import Any

_MODES = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGBA"}
_SHOWN = 12  # Classes by name, and entries of other lists.


def described(target: str, found: Mapping[str, Any]) -> str:
    """Lines on one path, by its kind."""
    kind = str(found["kind"])
    lines = {"image source": _source, "published folder": _published, "audit": _audit}.get(kind, _plain)(found)
    return "\n".join([f"{target}: {kind}", *lines])


def _source(found: Mapping[str, Any]) -> Iterator[str]:
    rows = [("split", "images", "classes", "sizes", "colours")]
    for name, split in found["splits"].items():
        sizes = ", ".join(split["sizes"])
        modes = ", ".join(f"{_MODES[int(mode)]}" for mode in split["modes"])
        rows.append((name, f"{split['images']:,}", str(len(split["classes"]) or "no labels"), sizes, modes))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    first = next(iter(found["splits"].values()))
    yield f"classes: {_counts(first['classes'])}" if first["classes"] else "classes: none, the images have no labels"
    yield f"next: {_advice(str(found['source']), first)}"


def _advice(source: str, split: Mapping[str, Any]) -> str:
    square = {width for width, _, height in (size.partition("x") for size in split["sizes"]) if width == height}
    one = len(split["sizes"]) == 1 and len(square) == 1
    size = "" if one else " --size 64"
    why = "" if one else " (sizes differ, so that one for training is needed)"
    if sum(map(bool, split["classes"].values())) < 2:
        why += " (fewer than two classes: clusters of features take their place)"
    return f"uge protect {source} OUT{size}{why}"


def _published(found: Mapping[str, Any]) -> Iterator[str]:
    measured, budget = found["measured"], found["budget"]
    yield f"{found['count']:,} images of {found['name']} ({found['split']}), {found['format']}, {found['codec']}"
    counts = dict(zip(found["classes"], found["class_counts"], strict=True))
    yield f"classes: {_counts(counts)}" if counts else "classes: none, published without labels"
    yield f"method: {found['method']}, at most {budget['levels']} of 255 levels (ρ = {budget['rho']:g})"
    psnr = "" if measured["psnr_db"] is None else f"PSNR {measured['psnr_db']:.1f} dB, "
    ssim = "" if measured["ssim"] is None else f"SSIM {measured['ssim']:.3f}, "
    yield (
        f"measured: largest change {measured['linf_levels']} levels, {psnr}{ssim}"
        f"{100 * measured['changed_pixels']:.0f} % of the pixels changed"
    )
    if found["authorized"]:
        yield f"made for: {', '.join(entry['network'] for entry in found['authorized'])}"
    sealed = found["sealed"]
    yield "originals: not in it" if sealed is None else f"originals: sealed for {', '.join(sealed['recipients'])}"
    licence = found["license"]
    yield f"licence: {'none named' if licence is None else licence['name'] or licence['id']}"
    yield f"rights: {found['reservation'] or 'nothing is reserved'}"


def _audit(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['label']}: {found['headline']}"
    yield str(found["verdict"])
    yield from (f"doubt: {warning}" for warning in found["warnings"])


def _plain(found: Mapping[str, Any]) -> Iterator[str]:
    for name, value in found.items():
        if name != "kind" and value not in (None, [], {}, ""):
            yield f"{name.replace('_', ' ')}: {_short(value)}"


def _counts(counts: Mapping[str, int]) -> str:
    named = [f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN]]
    rest = len(counts) - len(named)
    least = f" and {rest} more, from {min(counts.values()):,} to {max(counts.values()):,} images" if rest else ""
    return ", ".join(named) + least


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        inner = [f"{name} {_short(part)}" for name, part in list(value.items())[:_SHOWN]]
        return ", ".join(inner) + (", …" if len(value) > _SHOWN else "")
    if isinstance(value, list | tuple):
        return ", ".join(_short(part) for part in value[:_SHOWN]) + (", …" if len(value) > _SHOWN else "")
    return str(value)
