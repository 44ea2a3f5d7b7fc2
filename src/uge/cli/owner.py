"""Commands of owners and receivers around a published folder: keygen, sign, fulfil."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from uge.cli.console import Outcome, open_session, set_logging
from uge.cli.flags import FLAT, Common, OutPath, Replacing, Resumable


def keygen(out: OutPath, *, common: Annotated[Common, FLAT] = Common()) -> Outcome:
    """Make a private key that opens what is sealed to it, and print the public key that belongs to it.

    Example: `uge keygen me.agekey`; give the public key to owners, who run `uge protect --to KEY`.

    Parameters
    ----------
    out
        File for the private key, readable by you alone; it must not exist.
    """
    set_logging(common)
    from uge.files import locked
    from uge.sealing.age import make_identity

    with locked(out):
        recipient = make_identity(out)
    result = {"identity": str(out), "public_key": recipient.text, "fingerprint": recipient.fingerprint}
    return Outcome(result, f"{recipient.text}\nthe private key is in {out}: keep it to yourself")


def sign(out: OutPath, *, identity: OutPath | None = None, common: Annotated[Replacing, FLAT] = Replacing()) -> Outcome:
    """Sign a published folder, so that a receiver with your fingerprint can tell it from a forged one.

    Example: `uge sign out/mine`; a receiver runs `uge verify out/mine --signed-by FINGERPRINT`.

    Parameters
    ----------
    out
        Published folder.
    identity
        Your private key in PEM form, made on first use; uge/identity.pem in your settings' folder by default.
    """
    set_logging(common)
    from uge.publishing.signing import run_sign
    from uge.sealing.signing_key import spoken

    result = run_sign(out, identity, overwrite=common.overwrite, dry_run=common.dry_run)
    if common.dry_run:
        return Outcome(result, f"would sign {out}; nothing was written")
    key = spoken(result["fingerprint"])
    return Outcome(result, f"signed {out} by the key {key}: tell receivers this fingerprint over another channel")


def fulfil(
    request: Path,
    source: str,
    out: OutPath,
    *,
    test: str | None = None,
    limit: int | None = None,
    limit_test: int | None = None,
    size: int | None = None,
    seed: int = 1,
    expect_signer: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    identity: OutPath | None = None,
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Train the network of a request on your originals, and write nothing but its weights, sealed to the requester.

    The originals stay with you, but weights can remember images: read docs/sealed.md before you send them.

    Example: `uge fulfil alice.json my-images/ out/for-alice --test my-tests/ --expect-signer FINGERPRINT`

    Parameters
    ----------
    request
        Signed request for a network, made with --to.
    source
        The originals, as for `uge protect`.
    out
        Folder for the sealed weights and their card.
    test
        Images that are not trained on; the card then says the accuracy.
    limit
        First N images only.
    limit_test
        First N test images only.
    size
        Side length for training, where the originals have another one.
    seed
        Seed of data order and augmentation.
    expect_signer
        Refuse the request if another key signed it: its fingerprint, or a file of it.
    identity
        Your private key in PEM form, which signs the answer; uge/identity.pem in your settings' folder by default.
    """
    session = open_session(common)
    from uge.pipeline.fulfil import run_fulfil
    from uge.sealing.signing_key import spoken

    result = run_fulfil(
        request,
        source,
        out,
        test=test,
        limit=limit,
        limit_test=limit_test,
        size=size,
        seed=seed,
        expect_signer=expect_signer,
        identity=identity,
        session=session,
    )
    if common.dry_run:
        return Outcome(result, f"would train {result['network']} in {result['steps']} steps; nothing was written")
    accuracy = result["test_accuracy"]
    measured = "not measured (no --test)" if accuracy is None else f"{accuracy:.2f} %"
    return Outcome(
        result,
        f"trained {result['network']} on {result['images']} originals, test accuracy {measured}: send {out}, whose "
        f"weights only {result['recipient']} opens\nsigned by the key {spoken(result['signer'])}",
    )
