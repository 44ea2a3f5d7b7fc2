"""Signing a published folder: ``uge sign``."""

from pathlib import Path
from typing import Any

from uge.errors import IntegrityError, OutputExistsError
from uge.files import locked
from uge.publishing.manifest import read_manifest, signed_digests
from uge.publishing.verify import is_complete
from uge.sealing.signature import SIGNATURE, write_signature
from uge.sealing.signing_key import default_identity, open_identity


def run_sign(out: Path, identity: Path | None, *, overwrite: bool, dry_run: bool = False) -> dict[str, Any]:
    """Sign a published folder as its owner; nothing but the signature is written.

    Args:
        out: The published folder.
        identity: The owner's private key (PEM); the default one where not given. It is made where it does not exist.
        overwrite: Replace a signature, whichever key made it.
        dry_run: Check the folder only.

    Returns:
        ``signed`` (the folder), ``signature`` (its file), ``fingerprint`` (None in a dry run) and ``identity``.

    Raises:
        UsageError: There is no such folder, or the identity is none.
        OutputExistsError: The folder is signed already, and ``overwrite`` is false.
        IntegrityError: Files of the folder are missing or changed.
    """
    places = {"signed": str(out), "signature": str(out / SIGNATURE), "identity": str(identity or default_identity())}
    with locked(out):
        manifest = read_manifest(out)
        if not is_complete(out):
            raise IntegrityError([f"{out} has files that are missing or changed; look at what uge verify says"])
        if (out / SIGNATURE).exists() and not overwrite:
            raise OutputExistsError(f"{out} is signed already; give --overwrite to sign it anew")
        if dry_run:
            return {**places, "fingerprint": None}
        fingerprint = write_signature(out, signed_digests(out, manifest), open_identity(identity))
    return {**places, "fingerprint": fingerprint}
