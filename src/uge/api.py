"""The library's verbs: authorize, record_trajectory, protect, publish, apply, verify, train, audit, compare.

Everything here rests on the steps of the command line; nothing is computed in this file.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from uge.auditing.summary import Summary
from uge.budget import Budget
from uge.config import AuditConfig, ProtectConfig, PublishConfig
from uge.data.images import ImageSet, Pixels, Sample, whole
from uge.encoders import FeatureSpace
from uge.errors import UsageError, refuse
from uge.files import Move, check_output, local_path, locked, storage_errors
from uge.learning.recipes import Recipe, with_epochs
from uge.learning.trajectory import Trajectory
from uge.learning.trajectory import record_trajectory as record
from uge.methods import METHODS, ImagesInfo, Perturbation, method_for
from uge.methods.apply import GENERATOR, Savable, save_perturber
from uge.methods.base import DEFAULT_METHOD
from uge.methods.robust.settings import RobustSettings
from uge.methods.uge.settings import GeneratorSettings, LossWeights, RefineSettings
from uge.names import is_keyed
from uge.networks import ImageClassifier
from uge.pipeline.apply import run_apply
from uge.pipeline.audit import AuditRun
from uge.pipeline.images import publish_stream, read_store
from uge.pipeline.private_folder import write_keys
from uge.pipeline.protect import protect_task, provenance_of
from uge.pipeline.seal import check_sealing, sealing_of
from uge.pipeline.train import run_train
from uge.progress import Display, Silent
from uge.publishing import (
    Codec,
    Format,
    Manifest,
    Provenance,
    Verification,
    is_private,
    is_published,
    private_folder,
    read_manifest,
)
from uge.publishing import verify as verify_folder
from uge.publishing.private import MODE, keep_claims
from uge.report.compare import Comparison, load_audits, write_comparison
from uge.report.compare import compare as compare_audits
from uge.runtime import Runtime, stream_seed
from uge.sealing import read_identity
from uge.session import Session


@dataclass(frozen=True)
class AuthorizedPath:
    """An authorised network: θ0, its recipe, and its trajectory on the clean images where that was recorded."""

    theta0: ImageClassifier
    recipe: Recipe
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Protected:
    """A protected image set; iterating gives samples with protected pixels, made when asked for.

    Attributes:
        images: The clean images; they stay secret.
        perturbation: Protects them.
        provenance: Record of the perturbation for the manifest.
        paths: The authorised networks.
        runtime: Device and precision.
    """

    images: ImageSet
    perturbation: Perturbation
    provenance: Provenance
    paths: tuple[AuthorizedPath, ...]
    runtime: Runtime

    @property
    def budget(self) -> Budget:
        """Bound that every pixel keeps."""
        return self.perturbation.budget

    def __len__(self) -> int:
        return len(self.images)

    def pairs(self) -> Iterator[tuple[Pixels, Pixels]]:
        """Clean and protected pixels of every image, in order."""
        return ((whole(clean), whole(copy)) for clean, copy in self.perturbation.pairs(self.images, self.runtime))

    def __iter__(self) -> Iterator[Sample]:
        for number, (_, pixels) in enumerate(self.pairs()):
            yield Sample(self.images.ids[number], pixels, int(self.images.labels[number]))


def authorize(
    network: str,
    images: ImageSet,
    *,
    epochs: int | None = None,
    seed: int | None = None,
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
        seed: Makes the same θ0 of the same images again, for reproduction only; a secret one is drawn by default.
        recipe: How the authorised user will train.
        size: Side length for training, in pixels; the native one by default.
        weights: Safetensors file with θ0 instead of a seed.
        budget: ρ of the protection; a keyed network takes out patterns of this strength.

    Raises:
        UnknownNameError: There is no such network.
        UsageError: Sizes are mixed and none is given, the budget is too large for a keyed network, or ``epochs`` is
            below 1.
        DataError: The images cannot be trained on.
    """
    recipe = with_epochs(recipe or ProtectConfig().recipe, epochs)
    method = METHODS[method_for(wave_key=is_keyed(network))]
    config = ProtectConfig.checked(
        authorized=network,
        method=method.name,
        authorized_seed=seed,
        authorized_weights=() if weights is None else (weights,),
        size=size,
        rho=str(Budget.parse(budget).rho),
    )
    return AuthorizedPath(method.networks(ImagesInfo.of(images.check_trainable()), config)[0], recipe)


def record_trajectory(
    network: str,
    images: ImageSet,
    *,
    epochs: int | None = None,
    seed: int | None = None,
    recipe: Recipe | None = None,
    size: int | None = None,
    weights: Path | None = None,
    snapshots: int = 10,
    runtime: Runtime | None = None,
    progress: Display | None = None,
) -> AuthorizedPath:
    """Train an authorised network from θ0 on the clean images and record its trajectory.

    Args:
        network: A name in :data:`uge.networks.NETWORKS`, or another form that it allows.
        images: The images that are to be protected.
        epochs: If other than the recipe's.
        seed: Of θ0 and of the data order, for reproduction only; by default that of θ0 is drawn and secret, and the
            data order is that of seed 0.
        recipe: How the authorised user will train.
        size: Side length for training, in pixels; the native one by default.
        weights: Safetensors file with θ0 instead of a seed.
        snapshots: Number of θ_t that are stored, dense early.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows epochs.

    Raises:
        UnknownNameError: There is no such network.
        UsageError: Sizes are mixed and none is given.
        DataError: The images cannot be trained on.
    """
    session = _session(runtime, progress)
    authorized = authorize(network, images, epochs=epochs, seed=seed, recipe=recipe, size=size, weights=weights)
    theta0 = authorized.theta0
    store = read_store(images, theta0.size, theta0.channels, session)
    with session.progress.stage(f"trajectory of {theta0.name}") as on_progress:
        path = record(
            copy.deepcopy(theta0),
            store,
            authorized.recipe,
            seed=stream_seed(seed or 0, "trajectory", 0),
            runtime=session.runtime,
            snapshots=snapshots,
            progress=on_progress,
        )
    return replace(authorized, trajectory=path)


def protect(
    images: ImageSet,
    trajectory: AuthorizedPath | Sequence[AuthorizedPath] = (),
    *,
    budget: Budget | float | str | None = None,
    encoder: FeatureSpace | str = "local",
    method: str | None = None,
    refine: bool = False,
    seed: int = 0,
    size: int | None = None,
    hacker: str = "resnetc20",
    loss: LossWeights | None = None,
    generator: GeneratorSettings | None = None,
    refinement: RefineSettings | None = None,
    robust: RobustSettings | None = None,
    baseline: Mapping[str, object] | None = None,
    encoder_recipe: Recipe | None = None,
    runtime: Runtime | None = None,
    progress: Display | None = None,
) -> Protected:
    """Perturb images so that only the authorised networks learn from them.

    For keyed networks one of the class's patterns of their key is added to each image. For others a generator is
    trained under the paper's losses (Algorithm 1), and each image is refined if asked to. ``robust``, published
    protections and those of plug-ins (:func:`uge.methods.method`) take no authorised network.

    Args:
        images: The clean images.
        trajectory: From :func:`authorize` (keyed networks) or :func:`record_trajectory`, one for each
            authorised network; none for a method that protects for no network.
        budget: ρ in [0, 1] units; ``0.04``, ``"8/255"`` or a :class:`uge.Budget`; by default the method's own.
        encoder: ``"local"``, ``"clip:ID"``, or a feature space of ``uge.encoders``.
        method: A name in :data:`uge.methods.METHODS`; by default the one that suits the authorised networks:
            ``"keyed"`` for keyed networks, ``"uge"`` for others, ``"robust"`` without any.
        refine: Optimise every image's perturbation directly as well.
        seed: Root seed of generator, encoder and hacker, or of the protection.
        size: Side length for training, in pixels; by default that of the networks, or the native one.
        hacker: Architecture of the random hacker in the undistill loss.
        loss: Weights and constants of the losses.
        generator: Size of the generator and how it trains.
        refinement: How perturbations are refined.
        robust: Settings of the method ``robust``.
        baseline: Settings of a published protection, by name.
        encoder_recipe: How the local encoder trains.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows stages.

    Raises:
        UnknownNameError: There is no such method.
        UsageError: A setting is wrong, the authorised networks differ in size, recipe or key, or the
            method needs networks or trajectories that were not given.
    """
    paths = (trajectory,) if isinstance(trajectory, AuthorizedPath) else tuple(trajectory)
    networks = [path.theta0 for path in paths]
    method = method or (method_for(wave_key=is_keyed(networks[0].name)) if networks else DEFAULT_METHOD)
    row = METHODS[method]
    wanted = "authorised networks of uge.authorize, at least one" if row.authorizes else "no authorised network"
    refuse(
        {
            f"method '{method}' expects {wanted}, got {len(paths)}; give these, or another method": (
                row.authorizes != bool(paths)
            ),
            f"expected authorised networks of one size and recipe, got {len(paths)} that differ": (
                len({(path.theta0.size, path.theta0.channels, path.recipe) for path in paths}) > 1
            ),
        }
    )
    defaults = ProtectConfig()
    config = ProtectConfig.checked(
        authorized=",".join(network.name for network in networks) or None,
        method=method,
        rho=None if budget is None else str(Budget.parse(budget).rho),
        encoder=encoder if isinstance(encoder, str) else encoder.name,
        size=networks[0].size if networks else size,
        refine=refine,
        hacker=hacker,
        seed=seed,
        recipe=paths[0].recipe if paths else defaults.recipe,
        encoder_recipe=encoder_recipe or defaults.encoder_recipe,
        loss=loss or defaults.loss,
        generator=generator or defaults.generator,
        refinement=refinement or defaults.refinement,
        robust=robust or defaults.robust,
        baseline={name: str(value) for name, value in (baseline or {}).items()},
    )
    row.check(config)
    recorded = [path.trajectory for path in paths if path.trajectory is not None]
    if row.needs_paths and len(recorded) < len(paths):
        raise UsageError(f"method '{method}' needs the networks' paths; make them with record_trajectory")
    session = _session(runtime, progress)
    task = protect_task(
        images,
        ImagesInfo.of(row.check_images(images, config)),
        config,
        networks,
        session,
        trajectories=recorded,
        space=None if isinstance(encoder, str) else encoder.to(session.runtime.device),
    )
    perturbation = row.perturb(task)
    return Protected(images, perturbation, provenance_of(config, networks, perturbation), paths, session.runtime)


def publish(
    protected: Protected,
    out: str | Path,
    *,
    format: Format = "parquet",
    codec: Codec | None = None,
    recipients: Sequence[str | Path] = (),
    seal: bool = True,
    keep_metadata: bool = False,
    license: str | None = None,
    reserve: bool = True,
    overwrite: bool = False,
    progress: Display | None = None,
) -> Manifest:
    """Write the protected images to ``out``, and keys and perturber to ``OUT.private`` beside it.

    Both appear whole or not at all. The originals are sealed into ``out``: ``OUT.private/owner.agekey`` and the
    recipients' private keys open them, nothing else does.

    Args:
        protected: From :func:`protect`.
        out: The folder to publish.
        format: ``"parquet"`` (Hugging Face layout), ``"imagefolder"`` or ``"webdataset"`` (tar shards).
        codec: ``"webp"`` or ``"png"``, both lossless.
        recipients: Public keys that open the originals besides the owner's: ``age1…``, ``ssh-ed25519 …``, or files.
        seal: Seal the originals; False leaves them out of ``out``.
        keep_metadata: Seal image files byte for byte, with their EXIF data.
        license: SPDX identifier of the copy's licence, such as ``"CC-BY-4.0"``.
        reserve: Say in the copy that text and data mining is reserved: a sign, not a lock.
        overwrite: Replace an earlier output.
        progress: Shows images.

    Raises:
        OutputExistsError: An output exists.
        UsageError: ``overwrite`` is true, but this package did not write the output that exists; or another process
            is writing it; or a recipient's key is refused.
        DataError: No image was changed.
        StorageError: The disk is full or read-only.
    """
    out = local_path(out)
    private = private_folder(out)
    publishing = PublishConfig.checked(
        format=format,
        codec=codec,
        to=[str(each) for each in recipients],
        seal=seal,
        keep_metadata=keep_metadata,
        license=license,
        reserve=reserve,
    )
    check_sealing(publishing)
    with locked(out) as hold, storage_errors(private):
        for place, ours in ((out, is_published), (private, is_private)):
            check_output(place, source=protected.images.root, overwrite=overwrite, ours=ours)
        with hold.staged(private, mode=MODE) as secrets:

            def finish(manifest: Manifest) -> list[Move]:
                keep_claims(secrets, manifest)
                return [(secrets, private)]

            for path in protected.paths[:1]:
                write_keys(secrets, [path.theta0 for path in protected.paths], path.recipe)
            perturber = protected.perturbation.perturber
            if isinstance(perturber, Savable):
                save_perturber(secrets / GENERATOR, perturber)
            return publish_stream(
                protected.images,
                protected.perturbation.pairs(protected.images, protected.runtime),
                out,
                protected.budget,
                protected.provenance,
                publishing,
                _session(protected.runtime, progress),
                overwrite=overwrite,
                sealing=sealing_of(publishing, secrets),
                together=finish,
            )


def verify(
    out: str | Path,
    *,
    against: ImageSet | Sequence[ImageSet] | None = None,
    private: Path | None = None,
    key: str | Path | None = None,
    signed_by: str | None = None,
) -> Verification:
    """Re-read a published folder from disk and check everything that its manifest claims.

    Args:
        out: The published folder.
        against: The originals; then the change of every stored pixel is measured too. Where images were added from
            other sources, these stand behind the first, in the order of the additions.
        private: Its private folder, which proves every field of the manifest; ``OUT.private`` by default.
        key: File of a recipient's private key; then every sealed original is opened and compared too.
        signed_by: Key that must have signed the manifest: its fingerprint, or a file with it.

    Raises:
        UsageError: There is no such folder, or the key opens nothing in it.
    """
    identity = None if key is None else read_identity(Path(key))
    return verify_folder(Path(out), against=against, private=private, key=identity, signed_by=signed_by)


def audit(
    out: str | Path,
    *,
    test: str | Path,
    worst_case: bool = False,
    strongest: int = 8,
    networks: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    combine: bool = False,
    seeds: int | None = None,
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

    Cases that were run before are not run again.

    Args:
        out: The published folder, or any folder of labelled images.
        test: Clean test images; with a train split as well, that is the clean control.
        worst_case: Find the worst case over all attacks (docs/worst-case.md), with its own defaults.
        strongest: Attacks that the worst case repeats on more seeds and networks, and longer.
        networks: Architectures of the hackers; ``("cnn", "resnetc20")`` by default, ``("cnn", "resnet8")`` in the worst
            case.
        attacks: Attacks by name, families, ``A+B``, ``"standard"`` (the default) or ``"all"`` (the worst case's).
        variants: Changes of authorised training: names in :data:`uge.attacks.variants.VARIANTS` or ``"all"``;
            ``("order",)`` by default, none in the worst case.
        combine: Combine the two best attacks as well; ``"all"`` does so anyway.
        seeds: Repetitions; one by default, three of the strongest attacks in the worst case.
        budget: Time for the audit: ``"90s"``, ``"10m"``, ``"1h"`` or ``"full"``.
        workers: Cases that run at once, each in a process of its own; a program that asks for more than one keeps
            its own start behind ``if __name__ == "__main__":``.
        executor: Local processes, or Ray.
        keys: Key files; by default those in ``OUT.private``. The private key of a recipient opens the sealed originals
            instead, as ``clean``.
        clean: The originals, if they are not the train split of ``test``.
        public: Labelled images of another data set, for attacks that use some.
        trust_plugins: Allows a key to name code of others, which is then run as its network.
        folder: Audit folder; ``OUT.audit`` by default.
        size: Side length for training; by default the manifest's.
        limit_test: First N test images only; 2,000 in the worst case.
        seed: Root seed of the audit.
        epochs: If other than the recipe's; 5 in the worst case.
        recipe: Named recipe; by default the key's own, ``"short"`` in the worst case.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows cases.

    Returns:
        The summary; ``report`` is the path of the page.

    Raises:
        UnknownNameError: No such network or attack.
        UsageError: An attack is asked for by name that needs what is not there, or a setting is wrong.
        DataError: The test images have other classes, or ``clean`` has not the originals.
    """
    chosen = {
        "networks": networks,
        "attacks": attacks,
        "variants": variants if variants is None else variants or ("none",),
        "seeds": seeds,
        "limit_test": limit_test,
        "epochs": epochs,
        "recipe": recipe,
    }
    config = AuditConfig.checked(
        worst_case=worst_case,
        strongest=strongest,
        combine=combine,
        budget=budget,
        workers=str(workers),
        executor=executor,
        size=size,
        seed=seed,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    run = AuditRun(
        local_path(out),
        config,
        _session(runtime, progress),
        test=str(test),
        clean=None if clean is None else str(clean),
        public=None if public is None else str(public),
        keys=keys,
        trust_plugins=trust_plugins,
        folder=None if folder is None else local_path(folder),
    )
    return run.run()


def train(
    out: str | Path,
    *,
    key: str | Path,
    test: str | Path | None = None,
    network: str | None = None,
    recipe: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    limit_test: int | None = None,
    save: str | Path | None = None,
    seed: int = 1,
    trust_plugins: bool = False,
    owner: str | None = None,
    overwrite: bool = False,
    runtime: Runtime | None = None,
    progress: Display | None = None,
) -> dict[str, Any]:
    """Train on a published folder by a key, as its recipient does.

    A key file of weights is θ0 of the authorised network, which trains on the published images. The private key of a
    recipient opens the sealed originals, on which any network trains.

    Args:
        out: The published folder.
        key: Key file with θ0, or the private key of a recipient.
        test: Clean test images; none trains without measuring.
        network: Network for the originals; ``"cnn"`` by default.
        recipe: Named recipe for the originals; ``"short"`` by default.
        size: Side length for training on the originals, in pixels.
        epochs: If other than the recipe's.
        limit_test: First N test images only.
        save: Safetensors file for the trained weights.
        seed: Of data order and augmentation.
        trust_plugins: Allows a key to name code of others, which is then run as its network.
        owner: Key that must have signed the folder: its fingerprint, or a file with it.
        overwrite: Replace ``save``.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows epochs.

    Returns:
        ``network``, ``trained_on`` (``"published"`` or ``"originals"``), ``last`` and ``best`` accuracy in percent
        (None without ``test``), ``epochs``, ``recipe``, ``weights`` and more (docs/formats.md).

    Raises:
        UsageError: The key is none of this folder, or a setting does not go with it.
        IntegrityError: The originals are not those that were sealed, or ``owner`` did not sign the folder.

    Example:
        ::

            result = uge.train("out/photos", key="me.agekey", test="photos", network="resnet8")
            print(result["last"])
    """
    session = replace(_session(runtime, progress), overwrite=overwrite)
    return run_train(
        local_path(out),
        Path(key),
        None if test is None else str(test),
        network=network,
        recipe=recipe,
        size=size,
        epochs=epochs,
        seed=seed,
        limit_test=limit_test,
        save=None if save is None else local_path(save),
        trust_plugins=trust_plugins,
        owner=owner,
        session=session,
    )


def apply(
    perturber: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    limit: int | None = None,
    budget: Budget | float | str | None = None,
    format: Format = "parquet",
    codec: Codec | None = None,
    recipients: Sequence[str | Path] = (),
    seal: bool = True,
    license: str | None = None,
    reserve: bool = True,
    overwrite: bool = False,
    runtime: Runtime | None = None,
    progress: Display | None = None,
) -> Manifest:
    """Protect and publish further images by the generator or wave code of an earlier run, or by noise made elsewhere.

    Args:
        perturber: ``OUT.private/generator.safetensors`` of an earlier run, or a file of noise (docs/formats.md).
        source: Anything that :func:`load_images` takes.
        out: The folder to publish.
        split: Split of the source.
        limit: First N images only.
        budget: ρ of foreign noise; by default its largest value.
        format: ``"parquet"``, ``"imagefolder"`` or ``"webdataset"``.
        codec: ``"webp"`` or ``"png"``, both lossless.
        recipients: Public keys that open the originals besides the owner's.
        seal: Seal the originals.
        license: SPDX identifier of the copy's licence.
        reserve: Say in the copy that text and data mining is reserved.
        overwrite: Replace an earlier output.
        runtime: Device and precision; chosen by the hardware by default.
        progress: Shows images.

    Returns:
        The manifest of the new folder.

    Raises:
        UsageError: The noise does not fit the images, or a generator is given a budget.
        OutputExistsError: ``out`` exists.
        DataError: No image was changed.

    Example:
        ::

            uge.apply("out/photos.private/generator.safetensors", "more-photos", "out/more")
    """
    publishing = PublishConfig.checked(
        format=format,
        codec=codec,
        to=[str(each) for each in recipients],
        seal=seal,
        license=license,
        reserve=reserve,
    )
    out = local_path(out)
    run_apply(
        Path(perturber),
        str(source),
        out,
        publishing,
        split=split,
        limit=limit,
        rho=None if budget is None else str(Budget.parse(budget).rho),
        session=replace(_session(runtime, progress), overwrite=overwrite),
    )
    return read_manifest(out)


def compare(*audits: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Comparison:
    """Put audits side by side: where each protection stands, and every attack on each.

    Args:
        audits: Audit folders, at least two; ``NAME=FOLDER`` gives one another name.
        out: Page to write, ``.html``; Markdown, CSV and JSON go beside it.
        overwrite: Replace it.

    Returns:
        The comparison; ``to_pandas()`` is its table.

    Raises:
        UsageError: Fewer than two audits, two of one name, or no cases in one.
        OutputExistsError: ``out`` exists.

    Example:
        ::

            print(uge.compare("out/em.audit", "out/mine.audit").to_pandas())
    """
    if out is None:
        return compare_audits(load_audits(audits))
    return write_comparison([str(audit) for audit in audits], local_path(out), overwrite=overwrite)[0]


def _session(runtime: Runtime | None, progress: Display | None) -> Session:
    return Session(runtime or Runtime.create(), progress or Silent())
