"""The command line ``uge``; torch is imported only by the verbs that compute."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from uge.config import AuditConfig, ProtectConfig, PublishConfig
from uge.console import make_progress
from uge.errors import UGEError
from uge.flags import FLAT, Common, Compute, Resumable, Writing, settings_for

if TYPE_CHECKING:
    from uge.runtime import Runtime

EPILOGUE = """\
Exit codes: 0 done; 1 bad data or a failed check; 2 wrong use; 3 audit below `--fail-under`; 130 interrupted.

Settings come from flags, then from `--config FILE` (TOML or YAML with the flags' names, nested ones as tables).
"""

app = App(
    name="uge",
    help="Publish images from which only the network that you authorise learns (ungeneralizable examples).",
    help_format="markdown",
    help_epilogue=EPILOGUE,
    result_action="return_value",
)
app.register_install_completion_command(name="--install-completion")

Key = Annotated[tuple[Path, ...], Parameter(name="--key")]


@app.command
def demo(
    out: Path = Path("demo-out/photos"),
    *,
    config: Annotated[ProtectConfig, FLAT] = ProtectConfig(),
    audit: Annotated[AuditConfig, Parameter(name="--audit")] = AuditConfig(),
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> int:
    """Protect, publish, verify and attack the embedded photographs, offline, in a few minutes.

    Example: `uge demo`, or `uge demo OUT --json`.

    Parameters
    ----------
    out
        Where the published copy goes.
    """
    runtime, progress = _start(common), make_progress(quiet=common.quiet)
    from uge.pipeline.demo import run_demo

    found = run_demo(
        out, config, audit, runtime=runtime, progress=progress, resume=common.resume, overwrite=common.overwrite
    )
    return _emit(common, found, _audit_text(found))


@app.command
def protect(
    source: str,
    out: Path,
    *,
    config: Annotated[ProtectConfig, FLAT] = ProtectConfig(),
    publishing: Annotated[PublishConfig, FLAT] = PublishConfig(),
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> int:
    """Protect the train split of SOURCE and publish it in OUT; secrets go to OUT.private.

    Examples:

    - `uge protect photos out/photos --authorized cnn`
    - `uge protect my-images/ out/mine --authorized resnet18 --size 64 --rho 8/255 --refine`
    - `uge protect data/cifar10 out/cifar --limit 10000 --recipe.epochs 30 --resume`

    Parameters
    ----------
    source
        Folder, Parquet, npz, tar or CIFAR files, hf://owner/name, or the embedded set `photos`.
    out
        Folder to publish.
    """
    runtime, progress = _start(common), make_progress(quiet=common.quiet)
    from uge.pipeline.protect import ProtectRun

    run = ProtectRun(
        source,
        out,
        config,
        publishing,
        runtime=runtime,
        progress=progress,
        resume=common.resume,
        overwrite=common.overwrite,
    )
    if common.dry_run:
        return _emit(common, run.describe(), f"would protect {len(run.images)} images into {out}; nothing was written")
    result = run.run()
    manifest = result.manifest
    found = {
        "out": str(result.out),
        "private": str(result.private),
        "keys": [str(key) for key in result.keys],
        "images": manifest.count,
        "measured": manifest.measured.model_dump(mode="json"),
        "budget": manifest.budget.model_dump(mode="json"),
    }
    return _emit(
        common,
        found,
        f"published {manifest.count} images in {out}: largest change {manifest.measured.linf_levels} of "
        f"{manifest.budget.levels} allowed 8-bit levels, PSNR {manifest.measured.psnr_db or float('inf'):.1f} dB\n"
        f"keys, generator and trajectory are in {result.private}: keep that folder secret",
    )


@app.command
def apply(
    generator: Path,
    source: str,
    out: Path,
    *,
    split: str = "train",
    limit: int | None = None,
    publishing: Annotated[PublishConfig, FLAT] = PublishConfig(),
    common: Annotated[Writing, FLAT] = Writing(),
) -> int:
    """Protect new images with a generator that an earlier run trained.

    Example: `uge apply out/mine.private/generator.safetensors more-images/ out/more`

    Parameters
    ----------
    generator
        generator.safetensors from a private folder.
    source
        Images, as for `uge protect`.
    out
        Folder to publish.
    split
        Split of the source.
    limit
        First N images only.
    """
    runtime, progress = _start(common), make_progress(quiet=common.quiet)
    from uge.pipeline.apply import run_apply

    found = run_apply(
        generator,
        source,
        out,
        publishing,
        split=split,
        limit=limit,
        runtime=runtime,
        progress=progress,
        overwrite=common.overwrite,
        dry_run=common.dry_run,
    )
    done = "would protect" if common.dry_run else "protected"
    return _emit(common, found, f"{done} {found['images']} images into {out}")


@app.command
def train(
    out: Path,
    *,
    key: Path,
    test: str | None = None,
    epochs: int | None = None,
    limit_test: int | None = None,
    save: Path | None = None,
    seed: int = 1,
    common: Annotated[Writing, FLAT] = Writing(),
) -> int:
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
        Where the trained weights go (safetensors).
    seed
        Of data order and augmentation.
    """
    runtime, progress = _start(common), make_progress(quiet=common.quiet)
    from uge.pipeline.train import run_train

    found = run_train(
        out,
        key,
        test,
        epochs=epochs,
        seed=seed,
        limit_test=limit_test,
        save=save,
        runtime=runtime,
        progress=progress,
        overwrite=common.overwrite,
        dry_run=common.dry_run,
    )
    if common.dry_run:
        return _emit(common, found, f"would train {found['network']} on {out}; nothing was written")
    measured = "not measured (no --test)" if test is None else f"{found['last']:.2f} % (best {found['best']:.2f} %)"
    return _emit(common, found, f"{found['network']} trained on {out}: clean test accuracy {measured}")


@app.command
def verify(out: Path, *, against: str | None = None, common: Annotated[Common, FLAT] = Common()) -> int:
    """Re-read a published folder from disk and check everything that its manifest claims.

    Example: `uge verify out/mine --against my-images/`

    Parameters
    ----------
    out
        Published folder.
    against
        The originals; then the change of every stored pixel is measured too.
    """
    _logging(common)
    from uge.pipeline.verify import run_verify

    found = run_verify(out, against, make_progress(quiet=common.quiet))
    problems = found["problems"]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    text = f"{out}: {len(problems)} deviations" if problems else f"{out}: {found['count']} images, no deviation"
    return _emit(common, found, text) or int(bool(problems))


@app.command
def audit(
    out: Path,
    *,
    test: str,
    key: Key = (),
    config: Annotated[AuditConfig, FLAT] = AuditConfig(),
    folder: Path | None = None,
    fail_under: float | None = None,
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> int:
    """Attack a published folder: train the authorised network and hackers, judge all on clean test images.

    Finished cases are kept and not run again (`--overwrite` throws them away).

    Example: `uge audit out/mine --test my-images/ --networks cnn,resnetc20 --attacks direct,distill --seeds 3`

    Parameters
    ----------
    out
        Published folder, or any labelled image folder.
    test
        Clean test images; with a train split as well, that is the clean control.
    key
        Key file(s); by default those in OUT.private.
    folder
        Audit folder; OUT.audit by default.
    fail_under
        Exit with 3 when the gap (the smaller of last and best epoch) is below this many points.
    """
    runtime, progress = _start(common), make_progress(quiet=common.quiet)
    from uge.pipeline.audit import run_audit

    found = run_audit(
        out,
        test,
        config,
        keys=key,
        folder=folder,
        runtime=runtime,
        progress=progress,
        overwrite=common.overwrite,
        dry_run=common.dry_run,
    )
    if common.dry_run:
        return _emit(common, found, f"would run {len(found['cases'])} cases; nothing was written")
    gaps = [gap for gap in (found["gap"], found["gap_best"]) if gap is not None]
    code = _emit(common, found, _audit_text(found))
    return 3 if fail_under is not None and (not gaps or min(gaps) < fail_under) else code


@app.command
def report(run: Path, out: Path, *, common: Annotated[Writing, FLAT] = Writing()) -> int:
    """Write the HTML page of an audit folder.

    Example: `uge report out/mine.audit page.html`

    Parameters
    ----------
    run
        Audit folder (OUT.audit).
    out
        The page.
    """
    _logging(common)
    from uge.report import write_report

    page = write_report(run, out, overwrite=common.overwrite)
    return _emit(common, {"report": str(page)}, f"report: {page}")


@app.command
def inspect(target: str, *, common: Annotated[Common, FLAT] = Common()) -> int:
    """Say what a path is: published folder, private folder, audit, weights file, or image source.

    Example: `uge inspect out/mine`

    Parameters
    ----------
    target
        Path, hf:// id, or `photos`.
    """
    _logging(common)
    from uge.pipeline.look import inspect as look

    found = look(target)
    return _emit(common, found, json.dumps(found, indent=1, ensure_ascii=False))


@app.command
def env(*, common: Annotated[Compute, FLAT] = Compute()) -> int:
    """Show versions, device and precision, as every result records them.

    Example: `uge env --json`
    """
    found = _start(common).environment()
    return _emit(common, found, "\n".join(f"{name}: {value}" for name, value in found.items()))


def _start(common: Compute) -> Runtime:
    """Set logging and threads, and resolve device and precision."""
    _logging(common)
    # Threads that wait by spinning make a busy machine ten times slower; this must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from uge.runtime import Runtime

    if common.threads is not None:
        torch.set_num_threads(common.threads)
    return Runtime.create(common.device, common.precision)


def _logging(common: Common) -> None:
    level = logging.ERROR if common.quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(common.verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True)
    for noisy in ("matplotlib", "PIL", "urllib3", "httpx"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def _emit(common: Common, found: dict[str, Any], text: str) -> int:
    print(json.dumps(found, ensure_ascii=False, default=str) if common.json_output else text)
    return 0


def _audit_text(found: dict[str, Any]) -> str:
    from uge.audit.metrics import Summary
    from uge.report import text_table

    return f"{text_table(Summary.model_validate(found))}\n{found['verdict']}\nreport: {found['report']}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code (see the epilogue of ``uge --help``)."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        app.config = settings_for(tokens)
        code = app(tokens, exit_on_error=False, print_error=True)
    except cyclopts.CycloptsError:
        code = 2
    except UGEError as error:
        code = error.exit_code
        _complain(str(error))
    except KeyboardInterrupt:
        code = 130
        again = shlex.join(["uge", *tokens, *(["--resume"] if "--resume" not in tokens else [])])
        _complain(f"interrupted; what is finished was kept, go on with: {again}")
    except BrokenPipeError:
        # The reader of stdout went away; keep Python from complaining about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        code = 1
        if "-v" in tokens or "-vv" in tokens or "--verbose" in tokens:
            traceback.print_exc()
        _complain(f"unexpected {type(error).__name__}: {error}; run again with -v and report what it prints")
    raise SystemExit(code or 0)


def _complain(sentence: str) -> None:
    sys.stderr.write(f"uge: {sentence}\n")


if __name__ == "__main__":
    main()
