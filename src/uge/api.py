"""The library in six verbs: authorize or record_trajectory, protect, publish, verify, audit (see ``uge``'s docstring).

Everything here rests on the steps of the command line; nothing is computed in this file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from uge.api_audit import audit
from uge.budget import Budget
from uge.config import Method, ProtectConfig, PublishConfig
from uge.data.images import ImageSet
from uge.encoders import FeatureSpace
from uge.errors import UsageError
from uge.files import check_output, local_path, staged_folder
from uge.learning.recipes import Recipe, with_epochs
from uge.learning.trajectory import record_trajectory as record
from uge.methods.apply import GENERATOR, save_perturber
from uge.methods.uge.losses import Authorized
from uge.methods.uge.settings import METHODS, NEED_PATH, GeneratorSettings, LossWeights, RefineSettings
from uge.names import is_keyed
from uge.networks import KeyedClassifier
from uge.pipeline.perturbation import NoiseRun, write_keys
from uge.pipeline.protected import AuthorizedPath, Protected
from uge.pipeline.stages import authorized_networks, check_names, publish_stream, read_store
from uge.progress import Display, Silent
from uge.publishing import Manifest, is_private, is_published, private_folder
from uge.publishing.manifest import Codec, Format
from uge.publishing.private import MODE
from uge.publishing.verify import Verification
from uge.publishing.verify import verify as verify_folder
from uge.runtime import Runtime, stream_seed
from uge.session import Session

__all__ = ["AuthorizedPath", "Protected", "audit", "authorize", "protect", "publish", "record_trajectory", "verify"]


def authorize(
    network: str,
    images: ImageSet,
    *,
    epochs: int | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    size: int | None = None,
    weights: Path | None = None,
    budget: Budget | float | str = "0.04",
) -> AuthorizedPath:
    """Make θ0 of an authorised network; nothing is trained.

    Args:
        network: ``keyed:`` and a name in :data:`uge.networks.NETWORKS` for :func:`protect`'s method
            ``keyed``. A name without ``keyed:`` needs :func:`record_trajectory` for the paper's methods.
        images: The images that are to be protected.
        epochs: If other than the recipe's.
        seed: With the clean images it makes θ0: whoever has both has the key.
        recipe: How the authorised user will train.
        size: Side length for training, in pixels; the native one by default.
        weights: Safetensors file with θ0 instead of a seed.
        budget: ρ of the protection: a keyed network has to know how strong the patterns are that it takes out.

    Raises:
        UnknownNameError: There is no such network.
        UsageError: Sizes are mixed and none is given, the budget is too large for a keyed network, or ``epochs`` is
            below 1.
        DataError: The images cannot be trained on.
    """
    recipe = with_epochs(recipe or ProtectConfig().recipe, epochs)
    files = () if weights is None else (weights,)
    method: Method = "keyed" if is_keyed(network) else "uge"
    config = ProtectConfig.checked(
        authorized=network,
        method=method,
        authorized_seed=seed,
        authorized_weights=files,
        size=size,
        rho=str(Budget.parse(budget).rho),
    )
    return AuthorizedPath(authorized_networks(config, images.check_trainable())[0], recipe)


def record_trajectory(
    network: str,
    images: ImageSet,
    *,
    epochs: int | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    size: int | None = None,
    weights: Path | None = None,
    snapshots: int = 10,
    runtime: Runtime | None = None,
    progress: Display | None = None,
) -> AuthorizedPath:
    """Train an authorised network from θ0 on the clean images and keep its path.

    Args:
        network: A name in :data:`uge.networks.NETWORKS`, or another form that it allows.
        images: The images that are to be protected.
        epochs: If other than the recipe's.
        seed: Of θ0 and of the data order. With the clean images it makes θ0: whoever has both has the key.
        recipe: How the authorised user will train.
        size: Side length for training, in pixels; the native one by default.
        weights: Safetensors file with θ0 instead of a seed.
        snapshots: How many θ_t are kept, dense early.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows epochs.

    Raises:
        UnknownNameError: There is no such network.
        UsageError: Sizes are mixed and none is given.
        DataError: The images cannot be trained on.
    """
    session = _session(runtime, progress)
    one = authorize(network, images, epochs=epochs, seed=seed, recipe=recipe, size=size, weights=weights)
    theta0 = one.theta0
    store = read_store(images, theta0.size, theta0.channels, session)
    with session.progress.stage(f"trajectory of {theta0.name}") as on_progress:
        path = record(
            copy.deepcopy(theta0),
            store,
            one.recipe,
            seed=stream_seed(seed, "trajectory", 0),
            runtime=session.runtime,
            snapshots=snapshots,
            progress=on_progress,
        )
    return AuthorizedPath(theta0, one.recipe, path)


def protect(
    images: ImageSet,
    trajectory: AuthorizedPath | Sequence[AuthorizedPath],
    *,
    budget: Budget | float | str = "0.04",
    encoder: FeatureSpace | str = "local",
    method: Method | None = None,
    refine: bool = False,
    seed: int = 0,
    hacker: str = "resnetc20",
    loss: LossWeights | None = None,
    generator: GeneratorSettings | None = None,
    refinement: RefineSettings | None = None,
    encoder_recipe: Recipe | None = None,
    runtime: Runtime | None = None,
    progress: Display | None = None,
) -> Protected:
    """Perturb images so that only the authorised networks learn from them.

    For keyed networks one of the class's patterns of their key is added to each image; for others the
    generator is trained under the paper's losses (Algorithm 1), and each image refined if asked to.

    Args:
        images: The clean images.
        trajectory: From :func:`authorize` (keyed networks) or :func:`record_trajectory`, one for each
            authorised network.
        budget: ρ in [0, 1] units; ``0.04``, ``"8/255"`` or a :class:`uge.Budget`.
        encoder: ``"local"``, ``"clip:ID"``, or what ``uge.encoders`` made.
        method: ``"keyed"``, ``"uge"``, ``"uge-no-ud"``, ``"unlearn"`` or ``"undistill"``; by default
            ``"keyed"`` for keyed networks and ``"uge"`` for others.
        refine: Optimise every image's perturbation directly as well.
        seed: Root seed of generator, encoder and hacker.
        hacker: Architecture of the random hacker in the undistill loss.
        loss: Weights and constants of the losses.
        generator: Size of the generator and how it trains.
        refinement: How perturbations are refined.
        encoder_recipe: How the local encoder trains.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows stages.

    Raises:
        UsageError: A setting is wrong, the authorised networks differ in size, recipe or key, or the
            method needs a trajectory that was not recorded.
    """
    paths = (trajectory,) if isinstance(trajectory, AuthorizedPath) else tuple(trajectory)
    if len({(path.theta0.size, path.theta0.channels, path.recipe) for path in paths}) != 1:
        raise UsageError(f"expected authorised networks of one size and recipe, at least one, got {len(paths)} others")
    session, first, bound = _session(runtime, progress), paths[0], Budget.parse(budget)
    method = method or ("keyed" if isinstance(first.theta0, KeyedClassifier) else "uge")
    recorded = [Authorized(path.theta0, path.trajectory) for path in paths if path.trajectory is not None]
    defaults = ProtectConfig()
    config = ProtectConfig.checked(
        authorized=",".join(path.theta0.name for path in paths),
        method=method,
        rho=str(bound.rho),
        encoder=encoder if isinstance(encoder, str) else encoder.name,
        size=first.theta0.size,
        refine=refine,
        hacker=hacker,
        seed=seed,
        recipe=first.recipe,
        encoder_recipe=encoder_recipe or defaults.encoder_recipe,
        loss=loss or defaults.loss,
        generator=generator or defaults.generator,
        refinement=refinement or defaults.refinement,
    )
    check_names(config)
    if METHODS.get(method, frozenset()) & NEED_PATH and len(recorded) < len(paths):
        raise UsageError(f"method '{method}' needs the networks' paths; make them with record_trajectory")
    store = read_store(images.check_trainable(), first.theta0.size, first.theta0.channels, session)
    run = NoiseRun(config, store, [path.theta0 for path in paths], session)
    space = None if isinstance(encoder, str) else encoder.to(session.runtime.device)
    noise = run.run(recorded, space)
    return Protected(images, noise, paths, session.runtime)


def publish(
    protected: Protected,
    out: str | Path,
    *,
    format: Format = "parquet",
    codec: Codec | None = None,
    overwrite: bool = False,
    progress: Display | None = None,
) -> Manifest:
    """Write the protected images to ``out``, and keys and generator to ``OUT.private`` beside it.

    Both appear whole or not at all.

    Args:
        protected: From :func:`protect`.
        out: The folder to publish.
        format: ``"parquet"`` (Hugging Face layout) or ``"imagefolder"``.
        codec: ``"webp"`` or ``"png"``, both lossless.
        overwrite: Replace what is there.
        progress: Shows images.

    Raises:
        OutputExistsError: Something is there already.
        UsageError: ``overwrite`` is true, but this package did not write what is there.
        DataError: No image was changed.
        StorageError: The disk is full or read-only.
    """
    out, noise = local_path(out), protected.noise
    private, session = private_folder(out), _session(protected.runtime, progress)
    for place, ours in ((out, is_published), (private, is_private)):
        check_output(place, source=protected.images.root, overwrite=overwrite, ours=ours)
    with staged_folder(private, overwrite=overwrite, mode=MODE) as secrets:
        write_keys(secrets, [path.theta0 for path in protected.paths], protected.paths[0].recipe)
        save_perturber(secrets / GENERATOR, noise.generator)
        return publish_stream(
            protected.images,
            protected.pairs(),
            out,
            protected.budget,
            noise.provenance,
            PublishConfig.checked(format=format, codec=codec),
            session,
            overwrite=overwrite,
        )


def verify(out: str | Path, *, against: ImageSet | None = None) -> Verification:
    """Re-read a published folder from disk and check everything that its manifest claims.

    Args:
        out: The published folder.
        against: The originals; then the change of every stored pixel is measured too.

    Raises:
        UsageError: There is no such folder.
    """
    return verify_folder(Path(out), against=against)


def _session(runtime: Runtime | None, progress: Display | None) -> Session:
    return Session(runtime or Runtime.create(), progress or Silent())
