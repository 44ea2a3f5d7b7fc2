"""Description of an audit in plain words: the protection, the audit, its settings, and the limits of its numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from uge.auditing.checks import STARTED
from uge.auditing.summary import Summary, capital, counted, extent
from uge.cases.case import Case
from uge.files import canonical_json
from uge.methods import METHODS
from uge.names import is_keyed
from uge.progress import duration
from uge.report.tables import by_family

Facts = list[tuple[str, str]]


def value_at(data: Any, *path: str) -> Any:
    """A value inside nested JSON, or ``None`` where the path ends early."""
    for part in path:
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def headline(manifest: Mapping[str, Any], cases: Sequence[Case], summary: Summary) -> str:
    """One line under the title: images, classes, budget, seeds, runs."""
    count, classes = (value_at(manifest, key) for key in ("count", "classes"))
    levels = value_at(manifest, "measured", "linf_levels")
    networks = counted(len({hacker.network for hacker in summary.hackers}), "network")
    parts = (
        f"{count:,} images" if isinstance(count, int) else "",
        f"{len(classes)} classes" if isinstance(classes, list) else "",
        "" if levels is None else f"largest change {levels} of 255 levels",
        f"{extent(summary)} on {networks}" if summary.hackers else "",
        counted(summary.seeds, "seed"),
        counted(len(cases), "training run"),
    )
    return " · ".join(filter(None, parts))


def protection(manifest: Mapping[str, Any]) -> Facts:
    """Making of the published images, from the manifest."""
    steps = value_at(manifest, "method_details", "generator", "max_steps")
    passes, rounds = (value_at(manifest, "method_details", "refinement", key) for key in ("passes", "rounds"))
    texts = {
        "Images": _images(manifest),
        "Method": _method(manifest),
        "Promised bound": _bound(manifest),
        "Measured": _measured(manifest),
        "Made for": _receivers(manifest),
        "Feature space": _feature_space(manifest),
        "Generator": f"Trained for at most {steps:,} steps." if steps else "" if steps is None else "Left untrained.",
        "Refinement": f"Every image's noise optimised directly: {counted(rounds, 'round')} of {passes} passes."
        if isinstance(rounds, int)
        else "",
    }
    return [(title, text) for title, text in texts.items() if text]


def _images(manifest: Mapping[str, Any]) -> str:
    name, split, count, classes = (value_at(manifest, key) for key in ("name", "split", "count", "classes"))
    if not isinstance(count, int) or not isinstance(classes, list):
        return ""
    return f"All {count:,} images{f' of the {split} split' if split else ''} of {name}, in {len(classes)} classes."


def _method(manifest: Mapping[str, Any]) -> str:
    method = value_at(manifest, "method")
    about = str(value_at(manifest, "method_details", "about") or "").rstrip(".")
    # A report loads no package of others.
    if not about and method in METHODS and not METHODS.origin(method):
        about = METHODS[method].about
    return ": ".join(filter(None, (method, about))) + "." if method else ""


def _bound(manifest: Mapping[str, Any]) -> str:
    rho, levels = (value_at(manifest, "budget", key) for key in ("rho", "levels"))
    if levels is None:
        return ""
    if value_at(manifest, "method_details", "linf_claimed") is False:
        return "None on single pixels: this method does not bound the largest change."
    unit = f" (ρ = {rho:g} in pixel values from 0 to 1)" if isinstance(rho, int | float) else ""
    return f"No stored colour value differs from its original by more than {levels} levels{unit}."


def _measured(manifest: Mapping[str, Any]) -> str:
    measured = value_at(manifest, "measured") or {}

    def text(template: str, field: str, rest: str = "", more: str = "") -> str:
        value = measured.get(field)
        extra = measured.get(more)
        return "" if value is None else template.format(value) + ("" if extra is None else rest.format(extra))

    unchanged = measured.get("unchanged_images")
    parts = [
        text("largest change {} levels", "linf_levels"),
        text("mean PSNR {:.1f} dB", "psnr_db", " (lowest {:.1f} dB)", "psnr_min_db"),
        text("mean SSIM {:.3f}", "ssim", " (on {:,} images)", "ssim_sample"),
        text("{:.1%} of the pixels changed", "changed_pixels").replace("%", " %"),
        f"{counted(unchanged, 'image')} unchanged" if unchanged else "",
    ]
    shown = ", ".join(filter(None, parts))
    return f"On the stored pixels, read back from disk: {shown}." if shown else ""


def _receivers(manifest: Mapping[str, Any]) -> str:
    authorized = value_at(manifest, "authorized")
    if not isinstance(authorized, list):
        return ""
    networks = ", ".join(
        f"{value_at(network, 'network')} (initial weights sha256 {str(value_at(network, 'weights_sha256'))[:12]}…)"
        for network in authorized
    )
    return f"{networks or 'No network: no training is authorised'}."


def _feature_space(manifest: Mapping[str, Any]) -> str:
    encoder = value_at(manifest, "encoder")
    if not isinstance(encoder, Mapping):
        return ""
    kind = encoder.get("kind") or encoder.get("name") or "unnamed"
    detail = encoder.get("checkpoint") or encoder.get("networks")
    detail = ", ".join(map(str, detail)) if isinstance(detail, list) else detail
    trained = " trained on the protector's own images" if kind == "local" else ""
    return f"{kind} encoder{trained}{f' ({detail})' if detail else ''}."


def audit(summary: Summary, cases: Sequence[Case]) -> Facts:
    """Training runs of the audit: how many, which networks and attacks."""
    count = {role: sum(case.role == role for case in cases) for role in ("clean", "authorized", "hacker")}
    kinds = by_family(summary.hackers)
    attacks = ", ".join(f"{len(schemes)} of {kind.lower()}" for kind, schemes in kinds.items()) or "none"
    return [
        (
            "Training runs",
            f"{count['clean']} clean controls, {count['authorized']} of the authorised network, "
            f"{count['hacker']} of hackers; {duration(sum(case.seconds for case in cases))} in all.",
        ),
        ("Networks", ", ".join(dict.fromkeys(case.network for case in cases)) + "."),
        *(("Before training", doubt.what) for doubt in summary.doubts if doubt.check == STARTED),
        ("Attacks", f"{capital(attacks)}."),
        ("Measure", "Accuracy on the clean test set, after the last epoch and at the best epoch."),
    ]


def settings(manifest: Mapping[str, Any], cases: Sequence[Case]) -> list[tuple[str, Facts]]:
    """Settings that repeat the audit, in titled groups of (name, value)."""
    made: Facts = [("audit seeds", ", ".join(map(str, sorted({case.seed for case in cases}))))]
    if isinstance(manifest.get("seeds"), Mapping):
        made.append(("protection seeds", _shown(manifest["seeds"])))
    fields = {
        "tool version": "tool_version",
        "created": "created",
        "configuration sha256": "config_sha256",
        "stored as": "codec",
    }
    made += [(name, str(manifest[field])) for name, field in fields.items() if manifest.get(field) is not None]
    groups = [
        ("Training recipe", _common([case.recipe for case in cases])),
        ("Loss weights", _common([value_at(manifest, "method_details", "loss") or {}])),
        ("Environment", _common([case.environment for case in cases])),
        ("Origin", made),
    ]
    return [(title, facts) for title, facts in groups if facts]


def _common(values: Sequence[Mapping[str, Any]]) -> Facts:
    # Every key once; where cases differ, all values, marked as such.
    facts: Facts = []
    for key in dict.fromkeys(key for value in values for key in value if key != "seed"):
        texts = list(dict.fromkeys(_shown(value[key]) for value in values if key in value))
        facts.append((key.replace("_", " "), texts[0] if len(texts) == 1 else "varies: " + " / ".join(texts)))
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_shown(inner)}" for key, inner in value.items())
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def limits(summary: Summary, cases: Sequence[Case]) -> list[str]:
    """Limits of the numbers, in full sentences."""
    hackers = [case for case in cases if case.role == "hacker"]
    networks = counted(len({case.network for case in hackers}), "architecture")
    recipes = counted(len({canonical_json({**case.recipe, "seed": 0}) for case in hackers}), "recipe")
    keyed = any(is_keyed(result.network) for result in summary.authorized_all)
    same = not keyed and any(hacker.same_architecture for hacker in summary.hackers)
    several = len(summary.authorized_all) > 1
    remarks = {
        "A hacker with the authorised architecture differs from the authorised network only in its initial weights. "
        "That is the hardest case; a small gap there means that the architecture must stay secret too.": same,
        "The authorised networks share one wave key: a leak by one receiver is a leak by all.": several and keyed,
        "The effect weakens with every further network that is authorised.": several and not keyed,
    }
    return [
        f"An audit covers only what it ran: here {extent(summary)} with {networks} and {recipes}. A hacker with "
        "another network, more epochs, stronger augmentation or a pre-trained start may do better.",
        "Lossy compression, blurring, resizing, gray-scale conversion and adversarial training can weaken the "
        "perturbation. Unless they appear among the attacks above, they were not tried.",
        "Training on the original images, or from the authorised network's initial weights, works as well as ever. "
        "A leaked key cannot be called back, and what was public before stays public.",
        "The published pictures are not encrypted: people see what they show, with a change that can be visible. Only "
        "learning from them is made harder.",
        "The numbers belong to these images, this training size and this recipe; they do not carry over to others.",
        *(remark for remark, holds in remarks.items() if holds),
    ]
