"""The verbs of the command line; torch is imported only by those that compute, inside their functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from uge.cli.audit import audit, audit_text, compare
from uge.cli.console import Outcome, make_progress, open_session, set_logging
from uge.cli.exchange import fingerprint_text, request
from uge.cli.federated import federated
from uge.cli.flags import FLAT, Common, Compute, Page, Resumable, Writing
from uge.cli.paper import reproduce
from uge.config import AuditConfig, ProtectConfig, PublishConfig


def demo(
    out: Path = Path("demo-out/photos"),
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
        Where the published copy goes.
    """
    session = open_session(common)
    from uge.pipeline.demo import run_demo

    found, summary = run_demo(out, config, audit, session)
    return Outcome(found, audit_text(summary) if summary else f"would protect {out}; nothing was written")


def protect(
    source: str,
    out: Path,
    *,
    config: Annotated[ProtectConfig, FLAT] = ProtectConfig(),
    publishing: Annotated[PublishConfig, FLAT] = PublishConfig(),
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Protect the train split of SOURCE and publish it in OUT; secrets go to OUT.private.

    Examples:

    - `uge protect photos out/photos --authorized cnn`
    - `uge protect my-images/ out/mine --method uge --authorized resnet18 --size 64 --rho 8/255 --refine`
    - `uge protect data/cifar10 out/cifar --limit 10000 --recipe.epochs 30 --resume`
    - `uge protect my-images/ out/for-alice --for alice.json`

    Parameters
    ----------
    source
        Folder, Parquet, npz, tar or CIFAR files, hf://owner/name, or the embedded set `photos`.
    out
        Folder to publish.
    """
    session = open_session(common)
    from uge.pipeline.protect import ProtectRun
    from uge.requests.configure import describe_requests

    run = ProtectRun(source, out, config, publishing, session)
    asked = describe_requests(run.requests)
    signers = "".join(f"\n{fingerprint_text(one['id'], one['key_sha256'])}" for one in asked)
    if common.dry_run:
        text = f"would protect {len(run.images)} images into {out}; nothing was written{signers}"
        return Outcome(run.describe(), text)
    result = run.run()
    manifest = result.manifest
    found = {
        "out": str(result.out),
        "private": str(result.private),
        "keys": [str(key) for key in result.keys],
        "requests": asked,
        "images": manifest.count,
        "measured": manifest.measured.model_dump(mode="json"),
        "budget": manifest.budget.model_dump(mode="json"),
    }
    return Outcome(
        found,
        f"published {manifest.count} images in {out}: largest change {manifest.measured.linf_levels} of "
        f"{manifest.budget.levels} allowed 8-bit levels, PSNR {manifest.measured.psnr_db or float('inf'):.1f} dB\n"
        f"keys and everything else that is secret are in {result.private}: keep that folder to yourself{signers}",
        complaints=_unchanged(out, manifest.measured.unchanged_images, manifest.count),
    )


def _unchanged(out: Path, count: int, images: int) -> tuple[str, ...]:
    """What must be said, even quietly, where some images are published as they were."""
    said = f"{count} of {images} images in {out} are unchanged originals, from which anybody learns; leave them out"
    return (said,) if count else ()


def apply(
    noise: Path,
    source: str,
    out: Path,
    *,
    split: str = "train",
    limit: int | None = None,
    rho: str | None = None,
    scope: Literal["sample", "class"] | None = None,
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
        Folder to publish.
    split
        Split of the source.
    limit
        First N images only.
    rho
        Budget of noise made elsewhere, 0.04 or 8/255; by default its largest value.
    scope
        Whether that noise is per image or per class, where both have as many.
    """
    session = open_session(common)
    from uge.pipeline.apply import run_apply

    found = run_apply(noise, source, out, publishing, split=split, limit=limit, rho=rho, scope=scope, session=session)
    done = "would protect" if common.dry_run else "protected"
    complaints = () if common.dry_run else _unchanged(out, found["measured"]["unchanged_images"], found["images"])
    return Outcome(found, f"{done} {found['images']} images into {out}", complaints=complaints)


def train(
    out: Path,
    *,
    key: Path,
    test: str | None = None,
    epochs: int | None = None,
    limit_test: int | None = None,
    save: Path | None = None,
    seed: int = 1,
    trust_plugins: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Train as the authorised user: the published folder and a key file give an accuracy.

    Example: `uge train out/mine --key out/mine.private/authorized-0.key.safetensors --test my-images/`

    Parameters
    ----------
    out
        Published folder.
    key
        Key file with θ0 and the recipe.
    test
        Clean test images.
    epochs
        If other than the recipe's.
    limit_test
        First N test images only.
    save
        Where the trained weights go (safetensors); `--resume` goes on from what an interrupted training left beside it.
    seed
        Of data order and augmentation.
    trust_plugins
        Allow a key whose network is a plug-in (`package.module:function`, `timm:name`): its code is run.
    """
    session = open_session(common)
    from uge.pipeline.train import run_train

    found = run_train(
        out,
        key,
        test,
        epochs=epochs,
        seed=seed,
        limit_test=limit_test,
        save=save,
        trust_plugins=trust_plugins,
        session=session,
    )
    if common.dry_run:
        return Outcome(found, f"would train {found['network']} on {out}; nothing was written")
    measured = "not measured (no --test)" if test is None else f"{found['last']:.2f} % (best {found['best']:.2f} %)"
    return Outcome(found, f"{found['network']} trained on {out}: clean test accuracy {measured}")


def verify(out: Path, *, against: str | None = None, common: Annotated[Common, FLAT] = Common()) -> Outcome:
    """Re-read a published folder from disk and check everything that its manifest claims.

    Example: `uge verify out/mine --against my-images/`

    Parameters
    ----------
    out
        Published folder.
    against
        The originals; then the change of every stored pixel is measured too.
    """
    set_logging(common)
    from uge.pipeline.verify import run_verify

    found = run_verify(out, against, make_progress(quiet=common.quiet))
    problems = found["problems"]
    text = f"{out}: {len(problems)} deviations" if problems else f"{out}: {found['count']} images, no deviation"
    return Outcome(found, text, complaints=problems, code=int(bool(problems)))


def report(run: Path, out: Path, *, common: Annotated[Page, FLAT] = Page()) -> Outcome:
    """Write the HTML page of an audit folder.

    Example: `uge report out/mine.audit page.html`

    Parameters
    ----------
    run
        Audit folder (OUT.audit).
    out
        The page.
    """
    set_logging(common)
    from uge.report import write_report

    page = write_report(run, out, overwrite=common.overwrite)
    return Outcome({"report": str(page)}, f"report: {page}")


def inspect(target: str, *, common: Annotated[Common, FLAT] = Common()) -> Outcome:
    """Say what a path is: published or private folder, audit, federation, request, weights file, or image source.

    Example: `uge inspect out/mine`

    Parameters
    ----------
    target
        Path, hf:// id, or `photos`.
    """
    set_logging(common)
    from uge.pipeline.inspect import inspect as look

    found = look(target)
    return Outcome(found, json.dumps(found, indent=1, ensure_ascii=False))


def env(*, common: Annotated[Compute, FLAT] = Compute()) -> Outcome:
    """Show versions, device and precision, as every result records them.

    Example: `uge env --json`
    """
    found = open_session(common).runtime.environment()
    return Outcome(found, "\n".join(f"{name}: {value}" for name, value in found.items()))


VERBS = (demo, protect, apply, train, verify, audit, compare, report, inspect, env, federated, request, reproduce)
