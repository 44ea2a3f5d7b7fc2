"""The library's verb ``audit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from uge.auditing.summarize import Summary
from uge.config import AuditConfig
from uge.files import local_path
from uge.pipeline.audit import run_audit
from uge.progress import Display, Silent
from uge.runtime import Runtime
from uge.session import Session


def audit(
    out: str | Path,
    *,
    test: str | Path,
    networks: Sequence[str] = ("cnn", "resnetc20"),
    attacks: Sequence[str] = ("standard",),
    variants: Sequence[str] = ("order",),
    combine: bool = False,
    seeds: int = 1,
    budget: str = "full",
    workers: int | Literal["auto"] = 1,
    executor: Literal["local", "ray"] = "local",
    keys: Sequence[Path] = (),
    clean: str | Path | None = None,
    public: str | Path | None = None,
    trust_plugins: bool = False,
    folder: Path | None = None,
    size: int | None = None,
    limit_test: int | None = None,
    seed: int = 1000,
    epochs: int | None = None,
    recipe: str | None = None,
    runtime: Runtime | None = None,
    progress: Display | None = None,
) -> Summary:
    """Train the authorised network and hackers on a published folder; judge all on clean test images.

    Cases that were run before are not run again. The page is at ``report`` of what is returned.

    Args:
        out: The published folder, or any folder of labelled images.
        test: Clean test images; with a train split as well, that is the clean control.
        networks: Architectures of the hackers.
        attacks: What they do: names, families, ``A+B``, ``"standard"`` or ``"all"``.
        variants: What the authorised user changes: names in :data:`uge.attacks.variants.VARIANTS` or ``"all"``.
        combine: Combine the two best attacks as well; ``"all"`` does so anyway.
        seeds: Repetitions.
        budget: Time there is: ``"90s"``, ``"10m"``, ``"1h"`` or ``"full"``.
        workers: Cases that run at once, each in a process of its own; a program that asks for more than one keeps
            its own start behind ``if __name__ == "__main__":``.
        executor: Local processes, or Ray.
        keys: Key files; by default those in ``OUT.private``.
        clean: The originals, if they are not the train split of ``test``.
        public: Labelled images of another data set, for attacks that use some.
        trust_plugins: Whether a key may name code of others, which is then run as its network.
        folder: Where results go; ``OUT.audit`` by default.
        size: Side length for training; by default the manifest's.
        limit_test: First N test images only.
        seed: Root seed of the audit.
        epochs: If other than the recipe's.
        recipe: Named recipe; by default the key's own.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows cases.

    Raises:
        UnknownNameError: No such network or attack.
        UsageError: An attack is asked for by name that needs what is not there, or a setting is wrong.
        DataError: The test images have other classes, or ``clean`` has not the originals.
    """
    config = AuditConfig.checked(
        networks=",".join(networks),
        attacks=",".join(attacks),
        variants=",".join(variants) or "none",
        combine=combine,
        seeds=seeds,
        budget=budget,
        workers=str(workers),
        executor=executor,
        size=size,
        limit_test=limit_test,
        seed=seed,
        epochs=epochs,
        recipe=recipe,
    )
    found = run_audit(
        local_path(out),
        str(test),
        config,
        keys=keys,
        clean_source=None if clean is None else str(clean),
        public_source=None if public is None else str(public),
        trust_plugins=trust_plugins,
        folder=None if folder is None else local_path(folder),
        session=Session(runtime or Runtime.create(), progress or Silent()),
    )
    return Summary.model_validate(found)
