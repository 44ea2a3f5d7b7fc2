"""Commands of owners and receivers around a published folder: keygen, sign, push, grant, recipients, rekey, fulfil."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from uge.cli.console import Outcome, make_progress, open_session, set_logging
from uge.cli.flags import FLAT, Changing, Common, OutPath, Replacing, Resumable


def keygen(out: OutPath, *, common: Annotated[Common, FLAT] = Common()) -> Outcome:
    """Make a private key that opens what is sealed to it, and print the public key that belongs to it.

    Example: `uge keygen me.agekey > me.pub`; give me.pub to owners, for `uge protect --to me.pub`.

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
    make_progress(quiet=common.quiet).note(f"the private key is in {out}: keep it to yourself")
    return Outcome(result, recipient.text)


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


def push(
    out: Path,
    repository: str,
    *,
    private: Annotated[bool, Parameter(negative="")] = False,
    gated: Literal["auto", "manual"] | None = None,
    message: str | None = None,
    common: Annotated[Changing, FLAT] = Changing(),
) -> Outcome:
    """Verify a published folder and upload it to the Hugging Face hub, in one commit.

    Only files that the manifest lists go up. The token is that of `hf auth login` or HF_TOKEN.

    Example: `uge push out/mine owner/name --gated manual`

    Parameters
    ----------
    out
        Published folder.
    repository
        Data set owner/name on the hub; made where it does not exist.
    private
        Make a new repository private.
    gated
        Ask readers for their name first: auto grants it to each, manual lets you decide.
    message
        Message of the commit.
    """
    set_logging(common)
    from uge.pipeline.push import run_push

    progress = make_progress(quiet=common.quiet)
    pushed = run_push(out, repository, progress, private=private, gated=gated, message=message, dry_run=common.dry_run)
    if common.dry_run:
        return Outcome(vars(pushed), f"would upload {pushed.files} files to {pushed.url}; nothing was uploaded")
    return Outcome(vars(pushed), f"uploaded {pushed.files} files to {pushed.url}")


def grant(
    out: OutPath,
    *,
    to: str | None = None,
    wrapped: Path | None = None,
    name: str | None = None,
    key: Path | None = None,
    identity: OutPath | None = None,
    common: Annotated[Changing, FLAT] = Changing(),
) -> Outcome:
    """Seal a published folder for one more recipient; no image is touched.

    This cannot be taken back: copies that were fetched stay open. `uge rekey` is for later copies only.

    Examples:

    - `uge grant out/mine --to lab.pub`
    - `uge grant out/mine --to age1… --name lab`
    - `uge grant out/mine --wrapped yubikey.age`, for keys that only the program age can use

    Parameters
    ----------
    out
        Published folder whose originals are sealed.
    to
        Public key (age1…, ssh-ed25519 …), or a file with it.
    wrapped
        The content key as the program age wrapped it, in place of --to.
    name
        Name of the recipient's file; by default that of the key's file.
    key
        Private key that opens the folder; OUT.private/owner.agekey by default.
    identity
        Your private key in PEM form, which signed the folder; uge/identity.pem in your settings' folder by default.
    """
    set_logging(common)
    from uge.pipeline.recipients import run_grant

    result = run_grant(out, to=to, wrapped=wrapped, name=name, key=key, identity=identity, dry_run=common.dry_run)
    if common.dry_run:
        return Outcome(result, f"would seal {out} for '{result['name']}'; nothing was written")
    return Outcome(result, f"{out} is sealed for: {', '.join(result['recipients'])}")


def recipients(out: Path, *, owner: str | None = None, common: Annotated[Common, FLAT] = Common()) -> Outcome:
    """List the recipients of a sealed folder, and those that its owner did not sign for.

    Example: `uge recipients out/mine --owner FINGERPRINT`

    Parameters
    ----------
    out
        Published folder whose originals are sealed.
    owner
        Key of its owner: the fingerprint, or a file with it or with the public key.
    """
    set_logging(common)
    from uge.pipeline.recipients import run_recipients
    from uge.sealing.signing_key import spoken

    result = run_recipients(out, owner)
    signer = result["signed_by"]
    lines = ["not signed" if signer is None else f"signed by the key {spoken(signer)}"]
    lines += [
        f"{row['name']}  {row['kind']}  {'signed' if row['covered'] else 'not signed'}" for row in result["recipients"]
    ]
    return Outcome(result, "\n".join(lines), complaints=result["problems"], code=int(bool(result["problems"])))


def rekey(
    out: OutPath,
    *,
    drop: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    key: Path | None = None,
    identity: OutPath | None = None,
    common: Annotated[Changing, FLAT] = Changing(),
) -> Outcome:
    """Seal the originals of a published folder anew, under a new content key.

    A recipient that is left out cannot open the new copy. Old copies, and those in the history of a hub, stay readable
    for all who could read them.

    Example: `uge rekey out/mine --drop lab`

    Parameters
    ----------
    out
        Published folder whose originals are sealed.
    drop
        Recipient that is left out (`uge recipients`); repeatable.
    key
        Private key that opens the folder; OUT.private/owner.agekey by default.
    identity
        Your private key in PEM form, which signed the folder; uge/identity.pem in your settings' folder by default.
    """
    set_logging(common)
    from uge.pipeline.recipients import run_rekey

    result = run_rekey(
        out,
        drop=drop,
        key=key,
        identity=identity,
        progress=make_progress(quiet=common.quiet),
        dry_run=common.dry_run,
    )
    names = ", ".join(result["recipients"])
    if common.dry_run:
        return Outcome(result, f"would seal {result['images']} originals anew for: {names}; nothing was written")
    return Outcome(
        result,
        f"sealed {result['images']} originals in {out} anew for: {names}\n"
        "copies that were fetched before stay readable for all who could read them",
    )


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

    The originals stay with you, but weights can remember images: read docs/recipients.md before you send them.

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
