"""Training a requested network on the originals, which stay at home: ``uge fulfil``."""

import hashlib
from pathlib import Path
from typing import Any

from uge.config import ProtectConfig
from uge.data import load_images
from uge.files import check_output, code_version, staged_folder, writes
from uge.learning.training import evaluate, fit, steps_per_epoch
from uge.methods import ImagesInfo
from uge.networks import from_weights, weights_hash
from uge.networks.weights import weights_bytes
from uge.pipeline.images import check_original, read_store
from uge.pipeline.originals import clean_images
from uge.pipeline.train import checkpoint_of, checkpoints_of
from uge.publishing.fulfilment import DOCUMENT, Fulfilment, is_fulfilment, write_fulfilment
from uge.requests.configure import check_fits, show_requests
from uge.requests.request import read_request, theta0_file
from uge.requests.signed import check_signer, recipient_of
from uge.runtime import stream_seed
from uge.sealing.age import encrypt
from uge.sealing.signature import signature_of, write_signature
from uge.sealing.signing_key import open_identity, pinned_fingerprint
from uge.session import Session


@writes("out")
def run_fulfil(
    request_file: Path,
    source: str,
    out: Path,
    *,
    test: str | None = None,
    limit: int | None = None,
    limit_test: int | None = None,
    size: int | None = None,
    seed: int = 1,
    expect_signer: tuple[str, ...] = (),
    identity: Path | None = None,
    session: Session,
) -> dict[str, Any]:
    """Train exactly the network of a request on originals; the weights alone leave, sealed to the requester.

    Network, θ0 and recipe are the request's, and shown before work starts. Weights can remember images.

    Args:
        request_file: A request for a network, with a key to seal to.
        source: The originals, anything that :func:`uge.data.load_images` takes.
        out: Folder for the sealed weights and their card.
        test: Images that are not trained on; None measures nothing.
        limit: First N images of the source.
        limit_test: First N test images.
        size: Side length for training, where the originals have another one.
        seed: Of data order and augmentation.
        expect_signer: Fingerprints, or files of them, of the keys that may have signed the request.
        identity: The owner's private key (PEM), which signs the answer; made where it does not exist.
        session: Device, progress; resumes, overwrites, or only says what would be done.

    Returns:
        The claims (:class:`uge.publishing.fulfilment.Fulfilment`) as JSON values, ``out`` and ``signer``.

    Raises:
        UsageError: The request is refused, or for other data; or the run to resume had other settings.
        WeightsError: θ0 is missing or another.
        DataError: The images cannot be used.
        OutputExistsError: ``out`` exists and may not be replaced.
    """
    request = read_request(request_file)
    pinned = tuple(map(pinned_fingerprint, expect_signer))
    check_signer(request_file, request, pinned)
    recipient = recipient_of(request_file, request)
    check_original(source, again=True)
    images = load_images(source, split="train", limit=limit).check_trainable()
    check_fits(ProtectConfig.checked(requests=(request_file,), size=size), [request], ImagesInfo.of(images))
    tests = None if test is None else clean_images(test, images, limit_test)
    half_done = session.resume and any(checkpoints_of(out))
    may_replace = session.overwrite or half_done
    check_output(out, source=images.root, overwrite=may_replace, ours=is_fulfilment)
    show_requests([request], session.progress, pinned=bool(pinned))
    network = from_weights(theta0_file(request_file, request))
    recipe = request.recipe
    steps = recipe.epochs * steps_per_epoch(len(images), min(recipe.batch_size, len(images)))
    values = sum(parameter.numel() for parameter in network.parameters())
    session.progress.note(
        f"trains {values:,} parameters in {steps:,} steps on {len(images):,} originals; weights can remember images"
    )
    if session.dry_run:
        plan = {"network": network.name, "images": len(images), "parameters": values, "steps": steps}
        return {"request": request.id, **plan, "recipe": recipe.json_dict(), "recipient": recipient.text}
    key = open_identity(identity)
    store = read_store(images, request.size, request.channels, session)
    test_store = None if tests is None else read_store(tests, request.size, request.channels, session)
    settings = {
        "request": request.id,
        "network": request.theta0.weights_sha256,
        "data": store.digest(),
        "seed": seed,
        "precision": session.runtime.precision,
    }
    checkpoint = checkpoint_of(out, settings, resume=session.resume)
    with session.progress.stage(f"train {network.name}") as on_progress:
        fit(
            network,
            store,
            recipe,
            seed=stream_seed(seed, "train"),
            runtime=session.runtime,
            checkpoint=checkpoint,
            progress=on_progress,
        )
    sealed = encrypt(weights_bytes(network, {"recipe": recipe.model_dump_json()}), recipient)
    claims = Fulfilment(
        tool_version=code_version(),
        request=request.record,
        network=network.name,
        classes=images.classes,
        channels=request.channels,
        size=request.size,
        recipe=recipe.json_dict(),
        theta0_sha256=request.theta0.weights_sha256,
        weights_sha256=weights_hash(network),
        data_set=settings["data"],
        images=len(images),
        test_accuracy=None if test_store is None else evaluate(network, test_store, session.runtime),
        test_images=0 if test_store is None else len(test_store),
        recipient=recipient.text,
        sealed_sha256=hashlib.sha256(sealed).hexdigest(),
    )
    with staged_folder(out, overwrite=may_replace) as folder:
        digests = write_fulfilment(folder, claims, sealed)
        signer = write_signature(folder, digests, key, signature_of(DOCUMENT))
    checkpoint.unlink(missing_ok=True)
    return {**claims.model_dump(mode="json"), "out": str(out), "signer": signer}
