"""Commands that protect: demo, protect, apply, request, federated."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators
from cyclopts.validators import Number

from uge.cli.audit import audit_text, failures, nothing_attacked
from uge.cli.console import Outcome, open_session
from uge.cli.flags import FLAT, OutPath, Resumable, Writing
from uge.config import AuditConfig, ProtectConfig, PublishConfig
from uge.errors import IntegrityError, UsageError
from uge.federated.settings import Federation
from uge.learning.recipes import Recipe

if TYPE_CHECKING:
    from uge.publishing.manifest import Manifest
    from uge.session import Session


def demo(
    out: OutPath = Path("demo-out/photos"),
    *,
    config: Annotated[ProtectConfig, FLAT] = ProtectConfig(),
    audit: Annotated[AuditConfig, Parameter(name="--auditing")] = AuditConfig(),
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Protect, publish, verify and attack the embedded photographs, offline, in a few minutes.

    Example: `uge demo`, or `uge demo OUT --json`.

    Parameters
    ----------
    out
        Folder to publish.
    """
    began = time.monotonic()
    session = open_session(common)
    from uge.pipeline.audit import AuditRun
    from uge.pipeline.protect import ProtectRun
    from uge.publishing.private import OWNER_KEY, private_folder
    from uge.publishing.verify import run_verify

    source = "photos"
    run = ProtectRun(source, out, config, PublishConfig(), session)
    if common.dry_run:
        return Outcome(
            {**run.describe(), "audit": audit.model_dump(mode="json")}, f"would protect {out}; nothing was written"
        )
    run.run()
    found = run_verify(out, [source], session.progress)
    if found["problems"]:
        raise IntegrityError(found["problems"])
    session.progress.note(f"{out}: verified from disk, no deviation")
    key = private_folder(out) / OWNER_KEY
    auditing = AuditRun(out, audit, session, test=source, keys=[key], owner=found["signed_by"])
    summary = auditing.run()
    seconds = round(time.monotonic() - began, 1)
    return Outcome(
        {**summary.model_dump(mode="json"), "verified": True, "seconds": seconds},
        audit_text(summary),
        complaints=failures(auditing.folder, summary),
        code=1 if nothing_attacked(summary) else 0,
    )


def protect(
    source: str,
    out: str,
    *,
    append: Annotated[bool, Parameter(negative="")] = False,
    private: OutPath | None = None,
    config: Annotated[ProtectConfig, FLAT] = ProtectConfig(),
    publishing: Annotated[PublishConfig, FLAT] = PublishConfig(),
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Protect the train split of SOURCE and publish it in OUT; secrets go to OUT.private.

    Examples:

    - `uge protect photos out/photos`
    - `uge protect my-images/ out/mine --size 64 --to lab.pub --to age1…`
    - `uge protect data/cifar10 out/cifar --limit 10000 --effort low --resume`
    - `uge protect my-images/ out/for-alice --for alice.json`
    - `uge protect my-images/ out/one --method uge --authorized resnet18 --size 64`
    - `uge protect more-images/ out/mine --append`

    Parameters
    ----------
    source
        Folder, Parquet, npz, tar or CIFAR files, hf://owner/name, or the embedded set `photos`.
    out
        Folder to publish, here or at an address such as s3://bucket/x.
    append
        Add the images of SOURCE that OUT does not have yet, by its own settings and for its recipients.
    private
        Local folder for the copy and its keys, where OUT is an address.
    """
    from uge.pipeline.remote import output

    replaces = common.overwrite or common.resume or append
    with output(out, private, overwrite=replaces, trial=common.dry_run) as place:
        return _sent(out, place, _protect(source, place, append, config, publishing, common))


def _sent(out: str, place: Path, outcome: Outcome) -> Outcome:
    """The outcome, with the address to which the folder goes."""
    if str(place) == str(Path(out)):
        return outcome
    return replace(outcome, result={**outcome.result, "sent_to": out}, text=f"{outcome.text}\nit goes to {out}")


def _protect(
    source: str, out: Path, append: bool, config: ProtectConfig, publishing: PublishConfig, common: Resumable
) -> Outcome:
    session = open_session(common)
    if append:
        return _append(source, out, config, publishing, session)
    from uge.pipeline.protect import ProtectRun
    from uge.requests.configure import describe_requests

    _note_stated_seed(config, session)
    run = ProtectRun(source, out, config, publishing, session)
    asked = describe_requests(run.requests)
    if common.dry_run:
        return Outcome(run.describe(), f"would protect {len(run.images)} images into {out}; nothing was written")
    copy = run.run()
    manifest = copy.manifest
    result = {
        "out": str(copy.out),
        "private": str(copy.private),
        "keys": [str(key) for key in copy.keys],
        "requests": asked,
        "images": manifest.count,
        "sealed": None if manifest.sealed is None else list(manifest.sealed.recipients),
        "measured": manifest.measured.model_dump(mode="json"),
        "budget": manifest.budget.model_dump(mode="json"),
    }
    return Outcome(
        result,
        f"published {manifest.count} images in {out}: largest change {manifest.measured.linf_levels} of "
        f"{manifest.budget.levels} allowed 8-bit levels, {manifest.measured.sight}\n"
        f"keys and everything else that is secret are in {copy.private}: keep that folder to yourself"
        f"{sealed_text(manifest)}",
        complaints=_unchanged(out, manifest.measured.unchanged_images, manifest.count),
    )


def preview(
    source: str,
    *,
    out: OutPath = Path("preview.html"),
    rho: str = "2/255,0.02,0.04,0.08",
    methods: str = "robust",
    kinds: str = "pixel16,blur2",
    size: int | None = None,
    images: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 200,
    common: Annotated[Writing, FLAT] = Writing(),
) -> Outcome:
    """Show on one page how protections of several strengths look on your images; nothing is published.

    Examples:

    - `uge preview my-images/ --size 64`
    - `uge preview photos --methods robust,tap --rho 0.02,8/255 --out photos.html`

    Parameters
    ----------
    source
        Folder, Parquet, npz, tar or CIFAR files, hf://owner/name, or the embedded set `photos`.
    out
        The page, .html.
    rho
        Budgets, separated by commas.
    methods
        Methods that take a budget and no network (uge list methods), separated by commas.
    kinds
        Kinds of the method preview, separated by commas.
    size
        Side length at which images are perturbed; the native one by default.
    images
        Images that are perturbed and measured, spread over the classes.
    """
    session = open_session(common)
    from uge.pipeline.preview import run_preview

    budgets, names, views = map(_listed, (rho, methods, kinds))
    result = run_preview(source, out, session, budgets=budgets, methods=names, kinds=views, size=size, images=images)
    return Outcome(result, f"page: {out}")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _append(source: str, out: Path, config: ProtectConfig, publishing: PublishConfig, session: "Session") -> Outcome:
    from uge.pipeline.append import run_append

    added = run_append(source, out, config, publishing, session)
    result = {
        "out": str(out),
        "added": added.added,
        "skipped": added.skipped,
        "images": added.manifest.count,
        "sealed": list(added.manifest.sealed.recipients) if added.manifest.sealed else None,
        "measured": added.manifest.measured.model_dump(mode="json"),
        "budget": added.manifest.budget.model_dump(mode="json"),
    }
    there = f", {added.skipped} are in it already" if added.skipped else ""
    if session.dry_run:
        return Outcome(result, f"would add {added.added} images to {out}{there}; nothing was written")
    if not added.added:
        return Outcome(result, f"{out} has all {added.skipped} images already; nothing was changed")
    return Outcome(
        result,
        f"added {added.added} images to {out}{there}: {added.manifest.count} in all",
        complaints=_unchanged(out, added.manifest.measured.unchanged_images, added.manifest.count),
    )


def sealed_text(manifest: "Manifest") -> str:
    """Line on the recipients of sealed originals; empty where nothing is sealed."""
    if manifest.sealed is None:
        return ""
    return (
        f"\nthe originals are sealed in it, for: {', '.join(manifest.sealed.recipients)} (uge verify --key opens them)"
    )


def _note_stated_seed(config: ProtectConfig, session: "Session") -> None:
    if config.authorized_seed is not None:
        session.progress.note(
            "--authorized-seed is for reproduction only: the seed and the originals make the keys again; leave it out "
            "for secret keys"
        )


def _unchanged(out: Path, count: int, images: int) -> tuple[str, ...]:
    """A complaint, even with ``--quiet``, where some images are published as they were."""
    text = f"{count} of {images} images in {out} are unchanged originals, from which anybody learns; leave them out"
    return (text,) if count else ()


def apply(
    noise: Path,
    source: str,
    out: str,
    *,
    split: str = "train",
    limit: int | None = None,
    rho: str | None = None,
    scope: Literal["sample", "class"] | None = None,
    unit: Literal["1", "255"] | None = None,
    perturbed: Annotated[bool, Parameter(negative="")] = False,
    private: OutPath | None = None,
    publishing: Annotated[PublishConfig, FLAT] = PublishConfig(),
    common: Annotated[Writing, FLAT] = Writing(),
) -> Outcome:
    """Protect images with the generator or wave code of an earlier run, or with noise made elsewhere.

    Examples:

    - `uge apply out/mine.private/generator.safetensors more-images/ out/more`
    - `uge apply noise.npz:perturb cifar10/ out/theirs --rho 8/255`

    Parameters
    ----------
    noise
        generator.safetensors from a private folder, or a .npy, .npz or .safetensors file of noise
        (FILE:NAME for one array of several).
    source
        Images, as for `uge protect`.
    out
        Folder to publish, here or at an address such as s3://bucket/x.
    split
        Split of the source.
    limit
        First N images only, in the order of SOURCE.
    rho
        Budget of noise made elsewhere, 0.04 or 8/255; by default its largest value.
    scope
        Kind of that noise, per image or per class, where there are as many images as classes.
    unit
        Unit of noise made of floats: 1 for values in [0, 1], 255 for 8-bit levels. It follows from the values where
        they allow one reading only.
    perturbed
        The file holds whole perturbed images; their difference to SOURCE is the noise.
    private
        Local folder for the copy and its keys, where OUT is an address.
    """
    from uge.pipeline.remote import output

    with output(out, private, overwrite=common.overwrite, trial=common.dry_run) as place:
        return _sent(
            out,
            place,
            _apply(
                noise,
                source,
                place,
                publishing,
                common,
                split=split,
                limit=limit,
                rho=rho,
                scope=scope,
                unit=unit,
                perturbed=perturbed,
            ),
        )


def _apply(
    noise: Path,
    source: str,
    out: Path,
    publishing: PublishConfig,
    common: Writing,
    *,
    split: str,
    limit: int | None,
    rho: str | None,
    scope: Literal["sample", "class"] | None,
    unit: Literal["1", "255"] | None,
    perturbed: bool,
) -> Outcome:
    session = open_session(common)
    from uge.pipeline.apply import run_apply

    result = run_apply(
        noise,
        source,
        out,
        publishing,
        split=split,
        limit=limit,
        rho=rho,
        scope=scope,
        unit=None if unit is None else "[0, 1]" if unit == "1" else "levels",
        perturbed=perturbed,
        session=session,
    )
    if common.dry_run:
        return Outcome(result, f"would protect {result['images']} images into {out}")
    complaints = _unchanged(out, result["measured"]["unchanged_images"], result["images"])
    return Outcome(result, f"protected {result['images']} images into {out}", complaints=complaints)


def request(
    out: OutPath,
    *,
    network: str = "cnn",
    classes: Annotated[int | None, Parameter(validator=Number(lte=100_000))] = None,
    size: Annotated[int, Parameter(validator=Number(lte=4096))] = 32,
    channels: Literal[1, 3] = 3,
    method: str = "keyed",
    seed: int | None = None,
    weights: Path | None = None,
    recipe: Recipe = Recipe(epochs=15),
    to: str | None = None,
    originals: Annotated[bool, Parameter(negative="")] = False,
    identity: OutPath | None = None,
    common: Annotated[Writing, FLAT] = Writing(),
) -> Outcome:
    """Ask a data owner for a copy made for your network: a signed OUT.json, and its initial weights beside it.

    Send both; OUT.theta0.safetensors is a key and needs a confidential channel. The owner runs `uge protect --for`, or
    trains your network on the originals with `uge fulfil`, for which you give --to. With --originals you ask for the
    originals themselves, and there are no weights.

    Examples:

    - `uge request alice.json --network resnetc20 --classes 10 --recipe.epochs 30`
    - `uge request alice.json --to alice.pub --originals`

    Parameters
    ----------
    out
        The request, NAME.json.
    network
        A network of the table; method `keyed` puts a wave key in front of it.
    classes
        Number of classes of the owner's data.
    size
        Side length for training, in pixels.
    channels
        Colour channels.
    method
        How the owner will protect: keyed, or uge for the paper's methods.
    seed
        Makes the initial weights; a secret random one by default, since the seed is the key.
    weights
        Safetensors file with initial weights instead of a seed.
    recipe
        Recipe of your training.
    to
        Your public key (`uge keygen`), or a file with it, to which trained weights or originals are sealed.
    originals
        Ask for the originals, sealed to --to, instead of a copy for a network.
    identity
        Your private key in PEM form, made on first use; uge/identity.pem in your settings' folder by default.
    """
    session = open_session(common)
    from uge.requests.originals import write_originals_request
    from uge.requests.request import write_request
    from uge.requests.signed import signer_words

    if originals:
        if to is None or classes is not None or seed is not None or weights is not None:
            raise UsageError("--originals asks for no network: give --to and leave out --classes, --seed and --weights")
        result = write_originals_request(out, to, identity=identity, session=session)
        text = (
            f"would ask for the originals, sealed to {result['recipient']}; nothing was written"
            if common.dry_run
            else f"wrote {result['request']}: send it to the data's owner\n"
            f"{signer_words(result['id'], result['fingerprint'])}"
        )
        return Outcome(result, text)
    if classes is None:
        raise UsageError("expected the number of classes of the owner's data; give --classes")
    result = write_request(
        out,
        network,
        classes,
        size=size,
        channels=channels,
        method=method,
        recipe=recipe,
        seed=seed,
        weights=weights,
        to=to,
        identity=identity,
        session=session,
    )
    return Outcome(
        result,
        f"would ask for a copy for {result['network']}; nothing was written"
        if common.dry_run
        else f"wrote {result['request']} and {result['weights']}: send both to the data's owner, the second in "
        f"confidence, for it is the key\n{signer_words(result['id'], result['fingerprint'])}",
    )


def federated(
    source: str,
    out: OutPath,
    *,
    test: str,
    limit_test: int | None = None,
    config: Annotated[ProtectConfig, FLAT] = ProtectConfig(),
    federation: Annotated[Federation, FLAT] = Federation(),
    publishing: Annotated[PublishConfig, FLAT] = PublishConfig(),
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Divide images among servers, protect each part for one global network, and measure which networks learn.

    Examples:

    - `uge federated data/cifar10 out/fed --test data/cifar10 --authorized cnn --recipe.epochs 6 --limit 4000`
    - `uge federated data/cifar10 out/fed --test data/cifar10 --servers 4 --split dirichlet --alpha 0.5 --rounds 5`

    Parameters
    ----------
    source
        Training images, as for `uge protect`.
    out
        Folder of the federation.
    test
        Clean test images of all classes.
    limit_test
        First N test images only.
    """
    session = open_session(common)
    from uge.pipeline.federated import run_federated

    _note_stated_seed(config, session)
    result = run_federated(
        source,
        out,
        test=test,
        config=config,
        federation=federation,
        publishing=publishing,
        limit_test=limit_test,
        session=session,
    )
    servers = len(result["servers"])
    if common.dry_run:
        return Outcome(result, f"would divide {result['images']} images among {servers} servers; nothing was written")
    # Table 9: column, accuracy on each server's classes, on all.
    lines = [f"{'':14}" + "".join(f"{f'classes {k}':>11}" for k in range(servers)) + f"{'all':>8}{'best':>8}"]
    for name, row in result["columns"].items():
        parts = "".join(f"{'' if value is None else f'{value:.1f}':>11}" for value in row["parts"])
        lines.append(f"{name:14}{parts}{row['average']:8.1f}{row['best']:8.1f}")
    for data, run in (result["fedavg"] or {}).items():
        figures = ", ".join(f"{each['test_accuracy']:.1f}" for each in run["rounds"])
        lines.append(f"federated averaging on {data} parts, by round: {figures}")
    return Outcome(result, "\n".join([*lines, result["verdict"], f"report: {out / result['report']}"]))
