"""README.md of a published folder: a Hugging Face dataset card in plain words."""

from typing import Any

import yaml

from uge.publishing.layout import LAYOUTS
from uge.publishing.manifest import Authorized, Manifest, shown_on_pages
from uge.publishing.rights import front_matter, rights_section

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
NO_NETWORK = {
    "": "No network was authorised: no network should learn from this copy.",
    "preview": "No network was authorised: any network learns what the previews show.",
    "generator": "Its images were added to an earlier protected copy; the key of that copy opens them too.",
}
"""Sentences on a copy that names no network, by method."""
NORMS = {"L2": "the L2 norm", "none": "nothing"}


def dataset_card(manifest: Manifest) -> str:
    """Card with front matter for the Hugging Face Hub: contents of the folder, measurements and limits."""
    manifest = shown_on_pages(manifest)
    name = " ".join(manifest.name.split())
    return f"""---
{yaml.safe_dump(_front_matter(manifest, name), sort_keys=False, allow_unicode=True)}---

# {name}, a protected copy

{_contents(manifest)} {_originals(manifest)} No special code is needed
to read the protected images: they are an ordinary image data set.

## What was changed

{what_was_changed(manifest)}

## Train on it

{_authorized(manifest)}

## What this does not protect against

- It lowers what a network learns from this copy; it does not hide the pictures. {_seen(manifest)}
- Failure of every network, recipe and purification cannot be promised. `uge audit` measures how well the protection
  holds against those it tries; the margin counts, not the intention.
- A hacker that knows how a keyed protection works can estimate its patterns from the images of a class and take them
  out, without any key; adversarial training usually breaks other methods.
- With the original images, or with the key, a network trains as well as ever. A leaked key cannot be called back.
- The trained authorised network works wherever it is copied; a keyed one contains its key as well.
- Images that were public before are public still.
{rights_section(manifest)}
## Check the folder

`uge verify THIS_FOLDER` compares every file with `manifest.json`;
with `--against ORIGINALS` it measures the change again.
"""


def what_was_changed(manifest: Manifest) -> str:
    """List in Markdown of the changes to the images: method, bound, measurements and storage."""
    return (
        f"- Method: {manifest.method}.\n"
        f"{_budget(manifest)} Sizes, labels and alpha channels are as they were.\n"
        f"{_measured(manifest)}{_empty_classes(manifest)}\n"
        f"- Images are stored without loss ({manifest.codec}) and without the metadata of their sources."
    )


def _front_matter(manifest: Manifest, name: str) -> dict[str, Any]:
    return {
        "pretty_name": f"{name}, a protected copy",
        **front_matter(manifest),
        "task_categories": ["image-classification" if manifest.classes else "image-feature-extraction"],
        "tags": ["image", "data-protection", "unlearnable-examples", "uge"],
        "size_categories": [next((label for limit, label in SIZES if manifest.count < limit), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": LAYOUTS[manifest.format].pattern}],
            }
        ],
    }


def _contents(manifest: Manifest) -> str:
    images = f"{manifest.count:,} images without labels"
    if manifest.classes:
        images = f"{manifest.count:,} labelled images in {len(manifest.classes)} classes"
    shown = manifest.method_details.get("preview")
    if shown:
        return f"Previews of {images}, {shown}:\nnetworks can learn from them what people can see in them."
    return (
        f"{images}, changed slightly so that the network they were\n"
        "made for learns from them and other networks should not."
    )


def _seen(manifest: Manifest) -> str:
    if manifest.method_details.get("preview"):
        return "People see the previews only."
    return f"People see what they show, with a change that can be visible ({manifest.measured.sight})."


def _originals(manifest: Manifest) -> str:
    if manifest.sealed is None:
        return "The originals are not in here."
    apart = {shard.split: 0 for shard in manifest.sealed.shards if shard.split != manifest.split}
    for shard in manifest.sealed.shards:
        if shard.split in apart:
            apart[shard.split] += shard.count
    more = "".join(
        f" {count:,} more of the split '{split}' are sealed and have no public copy." for split, count in apart.items()
    )
    return (
        "The originals are in `sealed/`, encrypted:\nonly the recipients whose files are in `recipients/` open them, "
        f"with `uge` or by the standard program `age`.{more}"
    )


def _budget(manifest: Manifest) -> str:
    """Line on the promised bound; methods that bound another norm, or none, promise no L-inf bound."""
    details = manifest.method_details
    if details.get("preview"):
        return (
            "- Budget: none. Images are replaced, so a colour value may differ from its original by all 255 levels\n"
            "  (ρ = 1); what it was is measured below."
        )
    if details.get("linf_claimed") is False:
        return (
            f"- Budget: no L-inf bound is claimed (the method bounds {NORMS[str(details['norm'])]}); a change has an\n"
            f"  L2 length, in [0, 1] pixel values, of {details['l2_mean']:.2f} on average and "
            f"{details['l2_max']:.2f} at most."
        )
    return (
        f"- Budget: no colour value differs from its original by more than {manifest.budget.levels} of 255 levels\n"
        f"  (ρ = {manifest.budget.rho:g} in [0, 1] pixel values)."
    )


def _measured(manifest: Manifest) -> str:
    measured = manifest.measured
    changed = measured.psnr_db is not None
    psnr = f"; mean PSNR {measured.psnr_db:.1f} dB (lowest {measured.psnr_min_db:.1f})" if changed else ""
    ssim = f"; mean SSIM {measured.ssim:.3f} (on {measured.ssim_sample} images)" if measured.ssim is not None else ""
    return (
        f"- Measured on the stored files: largest change {measured.linf_levels} levels{psnr}{ssim}; "
        f"{100 * measured.changed_pixels:.1f} % of the pixels changed."
    )


def _empty_classes(manifest: Manifest) -> str:
    """Line on classes without an image and so without a folder; empty where readers number folders alike."""
    empty = [name for name, count in zip(manifest.classes, manifest.class_counts, strict=True) if not count]
    if manifest.format != "imagefolder" or not empty:
        return ""
    return (
        f"\n- {len(empty)} of the classes have no image and so no folder, such as '{empty[0]}'. Labels are those of\n"
        "  `index.csv` and `manifest.json`; a reader that numbers folders itself counts without these classes."
    )


def _authorized(manifest: Manifest) -> str:
    if not manifest.authorized:
        return NO_NETWORK.get(manifest.method, NO_NETWORK[""])
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
            *map(_network, manifest.authorized),
        ]
    )


def _network(authorized: Authorized) -> str:
    line = f"- {authorized.id}: {authorized.network}, weights sha256 `{authorized.weights_sha256}`"
    request = authorized.request
    return f"{line}, for request `{request.id}` signed by key sha256 `{request.key_sha256}`" if request else line
