"""README.md of a published folder: a Hugging Face dataset card in plain words."""

from __future__ import annotations

from typing import Any

import yaml

from uge.publishing.manifest import Manifest

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
MADE_FOR_NOBODY = {
    "": "No network was authorised: this copy is meant to be learnable by nobody.",
    "generator": "Its images were added to an earlier protected copy; the key of that copy opens them too.",
}
"""What to say of a copy that names no network, by method."""
NORMS = {"L2": "the L2 norm", "none": "nothing"}
PATHS = {"parquet": "data/train-*.parquet", "imagefolder": "train/**"}


def dataset_card(manifest: Manifest) -> str:
    """Front matter that the Hugging Face Hub accepts, then what the folder is, measured, and cannot do."""
    name = " ".join(manifest.name.split())
    return f"""---
{yaml.safe_dump(_front_matter(manifest, name), sort_keys=False, allow_unicode=True)}---

# {name}, a protected copy

{manifest.count:,} labelled images in {len(manifest.classes)} classes, changed slightly so that the network they were
made for learns from them and other networks should not. The originals are not in here. Nobody needs special code
to read this folder: it is an ordinary image data set.

## What was changed

- Method: {manifest.method}.
{_budget(manifest)} Sizes, labels and alpha channels are as they were.
{_measured(manifest)}
- Images are stored without loss ({manifest.codec}) and without the metadata of their sources.

## Train on it

{_authorized(manifest)}

## What this does not protect against

- It lowers what a network learns from this copy; it does not encrypt. People see the same pictures as before.
- Nobody can promise failure for every network, recipe and purification. `uge audit` measures how well the protection
  holds against those it tries; the margin counts, not the intention.
- Somebody who knows how a keyed protection works can estimate its patterns from the images of a class and take them
  out, without any key; adversarial training usually breaks others.
- Whoever has the original images, or the key, trains as well as ever. A leaked key cannot be called back.
- Whoever has the trained authorised network has a network that works; if it is a keyed one, he has the key as well.
- Images that were public before are public still.

## Check the folder

`uge verify THIS_FOLDER` compares every file with `manifest.json`;
with `--against ORIGINALS` it measures the change again.
"""


def _front_matter(manifest: Manifest, name: str) -> dict[str, Any]:
    size = next((label for limit, label in SIZES if manifest.count < limit), "n>1M")
    data = [{"split": "train", "path": PATHS[manifest.format]}]
    return {
        "pretty_name": f"{name}, a protected copy",
        "task_categories": ["image-classification"],
        "tags": ["image", "data-protection", "unlearnable-examples", "uge"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": data}],
    }


def _budget(manifest: Manifest) -> str:
    """What bound is promised; methods that bound another norm, or none, promise no L-inf bound."""
    details = manifest.method_details
    if details.get("linf_claimed") is False:
        mean, largest = details["l2_mean"], details["l2_max"]
        return (
            f"- Budget: no L-inf bound is claimed (the method bounds {NORMS[str(details['norm'])]}); a change has an\n"
            f"  L2 length, in [0, 1] pixel values, of {mean:.2f} on average and {largest:.2f} at most."
        )
    return (
        f"- Budget: no colour value differs from its original by more than {manifest.budget.levels} of 255 levels\n"
        f"  (ρ = {manifest.budget.rho:g} in [0, 1] pixel values)."
    )


def _measured(manifest: Manifest) -> str:
    found = manifest.measured
    parts = [f"largest change {found.linf_levels} levels"]
    if found.psnr_db is not None:
        parts.append(f"mean PSNR {found.psnr_db:.1f} dB (lowest {found.psnr_min_db:.1f})")
    if found.ssim is not None:
        parts.append(f"mean SSIM {found.ssim:.3f} (on {found.ssim_sample} images)")
    parts.append(f"{100 * found.changed_pixels:.1f} % of the pixels changed")
    return f"- Measured on the stored files: {'; '.join(parts)}."


def _authorized(manifest: Manifest) -> str:
    if not manifest.authorized:
        return MADE_FOR_NOBODY.get(manifest.method, MADE_FOR_NOBODY[""])
    lines = [
        f"- {one.id}: {one.network}, weights sha256 `{one.weights_sha256}`"
        + (f", for request `{one.request.id}` signed by key sha256 `{one.request.key_sha256}`" if one.request else "")
        for one in manifest.authorized
    ]
    return "\n".join(
        [
            "You need this folder and the key file that its owner gave you (the initial weights of the network).",
            "`TRAINING.md` has a script of plain PyTorch, for which the owner also gives you the network's definition.",
            "With `uge` installed:",
            "",
            "    uge train THIS_FOLDER --key authorized-0.key.safetensors",
            "",
            "It was made for:",
            "",
            *lines,
        ]
    )
