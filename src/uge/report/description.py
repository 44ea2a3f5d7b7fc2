"""Description of an audit in plain words: the protection, the audit, its settings, and the limits of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uge.auditing.checks import STARTED
from uge.auditing.summary import Summary
from uge.auditing.verdict import counted, extent
from uge.cases.case import Case
from uge.files import canonical_json
from uge.names import is_keyed
from uge.report.tables import FAMILIES

Facts = list[tuple[str, str]]
METHODS = {
    "keyed": "every class has secret wave patterns of its own, which the authorised network's key finds and takes out "
    "again; other networks take the waves for the classes",
    "uge": "three losses at once: gradient matching keeps the images learnable for the authorised network, feature "
    "distance leads other networks astray, undistill makes the authorised network a poor teacher",
    "uge-no-ud": "two losses: gradient matching keeps the images learnable for the authorised network, feature "
    "distance leads other networks astray; nothing was done against distillation",
    "unlearn": "the feature distance alone, which leads every network astray; no network was favoured",
    "undistill": "the undistill loss alone, which makes the authorised network a poor teacher",
}


def value_at(data: Any, *path: str | int) -> Any:
    """A value inside nested JSON, or ``None`` where the path ends early."""
    for part in path:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def headline(manifest: Mapping[str, Any], cases: Sequence[Case], summary: Summary) -> str:
    """One line under the title: images, classes, budget, seeds, runs."""
    count = value_at(manifest, "count")
    classes = value_at(manifest, "classes")
    levels = value_at(manifest, "measured", "linf_levels")
    parts = [f"{count:,} images" if isinstance(count, int) else ""]
    parts += [f"{len(classes)} classes" if isinstance(classes, list) else ""]
    parts += [f"largest change {levels} of 255 levels" if levels is not None else ""]
    networks = counted(len({hacker.network for hacker in summary.hackers}), "network")
    parts += [f"{extent(summary)} on {networks}"] if summary.hackers else []
    parts += [counted(summary.seeds, "seed"), counted(len(cases), "training run")]
    return " · ".join(part for part in parts if part)


def protection(manifest: Mapping[str, Any]) -> Facts:
    """How the published images were made, from the manifest."""
    facts: Facts = []
    count = value_at(manifest, "count")
    classes = value_at(manifest, "classes")
    split = value_at(manifest, "split")
    if isinstance(count, int) and isinstance(classes, list):
        where = f"{f' of the {split} split' if split else ''} of {value_at(manifest, 'name')}"
        facts.append(("Images", f"All {count:,} images{where}, in {len(classes)} classes."))
    method = value_at(manifest, "method")
    if method:
        about = str(METHODS.get(method) or value_at(manifest, "method_details", "about") or "").rstrip(".")
        facts.append(("Method", f"{method}: {about}." if about else f"{method}."))
    facts += _budget(manifest) + _measured(manifest)
    authorized = value_at(manifest, "authorized")
    if isinstance(authorized, list):
        networks = ", ".join(
            f"{value_at(network, 'network')} (initial weights sha256 {str(value_at(network, 'weights_sha256'))[:12]}…)"
            for network in authorized
        )
        facts.append(("Made for", f"{networks}." if networks else "No network: no training is authorised."))
    return facts + _how(manifest)


def _budget(manifest: Mapping[str, Any]) -> Facts:
    rho = value_at(manifest, "budget", "rho")
    levels = value_at(manifest, "budget", "levels")
    if levels is None:
        return []
    if value_at(manifest, "method_details", "linf_claimed") is False:
        return [("Promised bound", "None on single pixels: this method does not bound the largest change.")]
    unit = f" (ρ = {rho:g} in pixel values from 0 to 1)" if isinstance(rho, int | float) else ""
    return [("Promised bound", f"No stored colour value differs from its original by more than {levels} levels{unit}.")]


def _measured(manifest: Mapping[str, Any]) -> Facts:
    measured = value_at(manifest, "measured")
    linf, psnr, ssim = (value_at(measured, key) for key in ("linf_levels", "psnr_db", "ssim"))
    parts = [f"largest change {linf} levels"] if linf is not None else []
    if psnr is not None:
        lowest = value_at(measured, "psnr_min_db")
        parts.append(f"mean PSNR {psnr:.1f} dB" + (f" (lowest {lowest:.1f} dB)" if lowest is not None else ""))
    if ssim is not None:
        sample = value_at(measured, "ssim_sample")
        parts.append(f"mean SSIM {ssim:.3f}" + (f" (on {sample:,} images)" if sample else ""))
    changed, unchanged = (value_at(measured, key) for key in ("changed_pixels", "unchanged_images"))
    parts += [f"{100 * changed:.1f} % of the pixels changed"] if changed is not None else []
    parts += [f"{_many(unchanged, 'image')} unchanged"] if unchanged else []
    return [("Measured", f"On the stored pixels, read back from disk: {', '.join(parts)}.")] if parts else []


def _how(manifest: Mapping[str, Any]) -> Facts:
    facts: Facts = []
    encoder = value_at(manifest, "encoder")
    if isinstance(encoder, Mapping):
        kind = value_at(encoder, "kind") or value_at(encoder, "name") or "unnamed"
        detail = value_at(encoder, "checkpoint") or value_at(encoder, "networks")
        detail = ", ".join(map(str, detail)) if isinstance(detail, list) else detail
        trained = " trained on the protector's own images" if kind == "local" else ""
        facts.append(("Feature space", f"{kind} encoder{trained}{f' ({detail})' if detail else ''}."))
    steps = value_at(manifest, "method_details", "generator", "max_steps")
    refined = value_at(manifest, "method_details", "refinement")
    if steps is not None:
        facts.append(("Generator", f"Trained for at most {steps:,} steps." if steps else "Left untrained."))
    if isinstance(refined, Mapping):
        passes, rounds = value_at(refined, "passes"), value_at(refined, "rounds")
        facts.append(
            ("Refinement", f"Every image's noise optimised directly: {_many(rounds, 'round')} of {passes} passes.")
        )
    return facts


def audit(summary: Summary, cases: Sequence[Case]) -> Facts:
    """Training runs of the audit: how many, which networks and attacks."""
    count = {role: sum(case.role == role for case in cases) for role in ("clean", "authorized", "hacker")}
    kinds: dict[str, set[str]] = {}
    for hacker in summary.hackers:
        kinds.setdefault(FAMILIES.get(hacker.family, hacker.family).lower(), set()).add(hacker.scheme)
    attacks = ", ".join(f"{len(schemes)} of {kind}" for kind, schemes in kinds.items()) or "none"
    length = sum(case.seconds for case in cases)
    duration = f"{length / 3600:.1f} hours" if length >= 5400 else f"{length / 60:.0f} minutes"
    duration = duration if length >= 90 else f"{length:.0f} seconds"
    return [
        (
            "Training runs",
            f"{count['clean']} clean controls, {count['authorized']} of the authorised network, "
            f"{count['hacker']} of hackers; {duration} in all.",
        ),
        ("Networks", ", ".join(dict.fromkeys(case.network for case in cases)) + "."),
        *(("Before training", doubt.what) for doubt in summary.doubts if doubt.check == STARTED),
        ("Attacks", f"{attacks[0].upper()}{attacks[1:]}."),
        ("Measure", "Accuracy on the clean test set, after the last epoch and at the best epoch."),
    ]


def settings(manifest: Mapping[str, Any], cases: Sequence[Case]) -> list[tuple[str, Facts]]:
    """Settings that repeat the audit, in titled groups of (name, value)."""
    seeds = sorted({case.seed for case in cases})
    made: Facts = [("audit seeds", ", ".join(map(str, seeds)))]
    wanted = {
        "tool version": ("tool_version",),
        "command": ("command",),
        "created": ("created",),
        "configuration sha256": ("config_sha256",),
        "stored as": ("codec",),
    }
    made += [
        (name, str(value_at(manifest, *path))) for name, path in wanted.items() if value_at(manifest, *path) is not None
    ]
    named = value_at(manifest, "seeds")
    if isinstance(named, Mapping):
        made.insert(1, ("protection seeds", ", ".join(f"{key} = {value}" for key, value in named.items())))
    groups = [
        ("Training recipe", _common([case.recipe for case in cases])),
        ("Loss weights", _common([value_at(manifest, "method_details", "loss") or {}])),
        ("Environment", _common([case.environment for case in cases])),
        ("Origin", made),
    ]
    return [(title, facts) for title, facts in groups if facts]


def _common(values: Sequence[Mapping[str, Any]]) -> Facts:
    """Every key once; where cases differ, all values, marked as such."""
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
    sentences = [
        f"An audit covers only what it ran: here {extent(summary)} with {networks} and {recipes}. A hacker with "
        "another network, more epochs, stronger augmentation or a pre-trained start may do better.",
        "Lossy compression, blurring, resizing, gray-scale conversion and adversarial training can weaken the "
        "perturbation. Unless they appear among the attacks above, they were not tried.",
        "Training on the original images, or from the authorised network's initial weights, works as well as ever. "
        "A leaked key cannot be called back, and what was public before stays public.",
        "The pictures are not encrypted: people see them as before. Only learning from them is made harder.",
        "The numbers belong to these images, this training size and this recipe; they do not carry over to others.",
    ]
    keyed = any(is_keyed(result.network) for result in summary.authorized_all)
    several = len(summary.authorized_all) > 1
    if not keyed and any(hacker.same_architecture for hacker in summary.hackers):
        sentences.append(
            "A hacker with the authorised architecture differs from the authorised network only in its initial "
            "weights. That is the hardest case; a small gap there means that the architecture must stay secret too."
        )
    if several and keyed:
        sentences.append("The authorised networks share one wave key: a leak by one receiver is a leak by all.")
    elif several:
        sentences.append("The effect weakens with every further network that is authorised.")
    return sentences


def _many(count: Any, noun: str) -> str:
    return counted(count, noun) if isinstance(count, int) else f"an unknown number of {noun}s"
