"""Perturbations by a published protection of others: the part of ``uge protect`` that differs for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.config import ProtectConfig
from uge.data.store import PixelStore, Records
from uge.files import fingerprint
from uge.methods.baselines import Baseline, Material, baseline, kept, read_settings, sizes
from uge.pipeline.perturbation import public_name
from uge.pipeline.stages import budget_of
from uge.publishing import Provenance
from uge.session import Session


def run_baseline(
    config: ProtectConfig, store: PixelStore, session: Session, folder: Path | None = None
) -> tuple[Records, Provenance]:
    """Perturbations of all images at the training size, and how they came about.

    Args:
        config: ``method`` is the name of a baseline.
        store: Clean images at the training size.
        session: Device, precision, progress.
        folder: Where finished perturbations and checkpoints are kept; None keeps them in memory.

    Raises:
        UsageError: A setting is wrong.
        UGEError: The method failed; its checkpoints stay in the folder.
    """
    method, budget = baseline(config.method), budget_of(config)
    with session.progress.stage(config.method) as on_progress:
        material = Material(store, budget, config.seed, session.runtime, config.baseline, folder, on_progress)
        records = kept(material, method.make)
    provenance = Provenance(
        method=config.method,
        seeds={"seed": config.seed},
        config_sha256=fingerprint(config.model_dump(mode="json")),
        method_details=_details(config, method, store, records, budget),
    )
    return records, provenance


def _details(
    config: ProtectConfig, method: Baseline, store: PixelStore, records: Records, budget: Budget
) -> dict[str, Any]:
    """What a reader of the manifest must know to compare it: what is bounded, and what came out."""
    settings = read_settings(method.settings, config.baseline).model_dump(mode="json")
    measured, clipped = sizes(store, records, budget), budget.levels < Budget(method.rho).levels
    return {
        "about": method.about,
        "norm": method.norm,
        "scope": method.scope,
        "published_rho": method.rho if method.norm == "Linf" else None,
        "clipped": clipped and method.norm != "Linf",
        "linf_claimed": method.norm == "Linf" or clipped,
        "l2_mean": measured["l2_mean"],
        "l2_max": measured["l2_max"],
        "settings": {key: public_name(one) if isinstance(one, str) else one for key, one in settings.items()},
        "training_size": store.size,
        "channels": store.channels,
    }
