"""Recipients of sealed originals after publication: ``uge grant``, ``uge recipients`` and ``uge rekey``; no torch.

Every change writes the manifest, the pages that follow from it and the owner's signature anew, and all files take their
places together.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from uge.errors import UnknownNameError, UsageError, refuse
from uge.files import Hold, Move, code_version, locked, read_bytes, read_json, write_atomic, write_json
from uge.progress import Display, Silent
from uge.publishing import Manifest, private_folder, read_manifest
from uge.publishing.manifest import MANIFEST
from uge.publishing.private import CLAIMS, OWNER_KEY, PUBLIC_KEYS, keep_claims
from uge.publishing.writer import pages_of, write_claims
from uge.sealing import (
    ContentKey,
    RecipientRecord,
    SealedRecord,
    ShardReader,
    ShardWriter,
    open_folder,
    parse_recipients,
    read_identity,
    wrap,
)
from uge.sealing.age import LARGEST_KEY
from uge.sealing.record import RECIPIENT_NAME, RECIPIENTS, SEALED
from uge.sealing.signature import SIGNATURE, Signed, check, read_signature
from uge.sealing.signing_key import key_fingerprint, open_identity, pinned_fingerprint, public_bytes, spoken
from uge.sealing.writer import recipient_name
from uge.sealing.writer import wrapped as write_wrapped

_AGE = b"age-encryption.org/v1\n"


@dataclass(frozen=True)
class Owned:
    """Sealed folder under lock, and the key that signs its changes.

    Attributes:
        out: The published folder.
        hold: Its lock.
        manifest: Its manifest.
        record: What is sealed.
        signer: The owner's.
    """

    out: Path
    hold: Hold
    manifest: Manifest
    record: SealedRecord
    signer: Ed25519PrivateKey

    @property
    def private(self) -> Path:
        """Its private folder."""
        return private_folder(self.out)

    def known_keys(self) -> dict[str, str]:
        """Public keys by name, as far as the private folder has them."""
        path = self.private / PUBLIC_KEYS
        return {str(name): str(text) for name, text in read_json(path).items()} if path.is_file() else {}

    def change(self, staging: Path, record: SealedRecord, moved: Sequence[Move], keys: dict[str, str]) -> str:
        """Let the folder claim a new record; manifest, pages, signature and ``moved`` take their places together.

        Args:
            staging: Folder of the lock in which files are finished.
            record: What is sealed from now on.
            moved: More that was finished there, and its place.
            keys: Public keys by name, for the private folder.

        Returns:
            Fingerprint of the signature.
        """
        changed = self.manifest.model_copy(update={"sealed": record, "tool_version": code_version()})
        manifest = write_claims(staging, changed, self.signer)
        names = (*pages_of(manifest), MANIFEST, SIGNATURE)
        moves = [*moved, *((staging / name, self.out / name) for name in names)]
        with contextlib.ExitStack() as stack:
            if self.private.is_dir():
                secret = stack.enter_context(self.hold.staged(self.private, mode=0o700))
                write_json(secret / PUBLIC_KEYS, keys)
                keep_claims(secret, manifest)
                moves += [(secret / name, self.private / name) for name in (PUBLIC_KEYS, CLAIMS)]
            self.hold.exchange(moves)
        return key_fingerprint(public_bytes(self.signer))


@contextlib.contextmanager
def owned_folder(out: Path, identity: Path | None) -> Iterator[Owned]:
    """Lock a sealed folder for a change by its owner.

    Raises:
        UsageError: Nothing is sealed in it, or it is not signed by the owner's key.
        IntegrityError: Its manifest or signature was changed.
    """
    with locked(out) as hold:
        manifest = read_manifest(out)
        if manifest.sealed is None:
            raise UsageError(f"{out} holds nothing sealed, so that it has no recipients; publish without --no-seal")
        signed = check(out)
        signer = open_identity(identity)
        fingerprint = key_fingerprint(public_bytes(signer))
        if signed is None:
            raise UsageError(f"{out} is not signed, so that it may be a forged one; check it, and run uge sign first")
        if signed.fingerprint != fingerprint:
            raise UsageError(
                f"{out} is signed by the key {spoken(signed.fingerprint)}, and only that key may sign its changes; got "
                f"{spoken(fingerprint)}; give the owner's --identity"
            )
        yield Owned(out, hold, manifest, manifest.sealed, signer)


def run_grant(
    out: Path,
    *,
    to: str | None = None,
    wrapped: Path | None = None,
    name: str | None = None,
    key: Path | None = None,
    identity: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Add a recipient to a sealed folder; no image and no shard is touched.

    Args:
        out: The published folder.
        to: Public key of the recipient, or a file with it.
        wrapped: In place of ``to``: the content key as the program ``age`` wrapped it, for keys of its plug-ins.
        name: Name of the recipient's file; by default that of the key's file, or digits of its fingerprint.
        key: Private key that opens the folder; ``OUT.private/owner.agekey`` by default.
        identity: The owner's key that signs (PEM); the default one where not given.
        dry_run: Check only.

    Returns:
        ``out``, ``name``, ``kind``, ``recipients`` (names of all), and ``fingerprint`` of the signature (None in a dry
        run).

    Raises:
        UsageError: A key is refused, the name is taken, nothing is sealed, or the folder is not signed by the owner.
        IntegrityError: Manifest, signature or a recipient's file were changed.
    """
    if (to is None) == (wrapped is None):
        raise UsageError("expected one new recipient; give --to KEY or --wrapped FILE")
    with owned_folder(out, identity) as owned:
        keys = owned.known_keys()
        if wrapped is not None:
            data = read_bytes(wrapped, LARGEST_KEY)
            if not data.startswith(_AGE):
                raise UsageError(f"expected {wrapped} to be an age file in binary form, got another; leave out age -a")
            kind = "wrapped"
            name = name or wrapped.stem
        else:
            (recipient,) = parse_recipients(to or "")
            sealed = open_folder(out, read_identity(key or owned.private / OWNER_KEY))
            data = wrap(sealed.key, recipient)
            kind = recipient.kind
            name = name or recipient_name(str(to), recipient)
            if recipient.text in keys.values():
                raise UsageError(f"{out} is sealed for that key already; look at uge recipients")
            keys[name] = recipient.text
        entry = RecipientRecord(kind=kind, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        _check_name(name, owned.record)
        record = owned.record.model_copy(update={"recipients": {**owned.record.recipients, name: entry}})
        result = {"out": str(out), "name": name, "kind": kind, "recipients": list(record.recipients)}
        if dry_run:
            return {**result, "fingerprint": None}
        with owned.hold.staged(out) as staging:
            file = f"{name}.age"
            write_atomic(staging / file, data)
            fingerprint = owned.change(staging, record, [(staging / file, out / RECIPIENTS / file)], keys)
    return {**result, "fingerprint": fingerprint}


def run_recipients(out: Path, owner: str | None = None) -> dict[str, Any]:
    """Recipients of a sealed folder, and if its owner's signature covers them.

    Anybody who can open the folder can add recipients; only the owner can sign for them.

    Args:
        out: The published folder.
        owner: Fingerprint or file of the key that must have signed.

    Returns:
        ``signed_by`` (fingerprint; None without a signature), ``recipients`` (``name``, ``kind``, ``covered``) and
        ``problems``, one sentence for each recipient that the signature does not cover.

    Raises:
        UsageError: Nothing is sealed in the folder.
        IntegrityError: The signature is damaged, or not the owner's.
    """
    manifest = read_manifest(out)
    if manifest.sealed is None:
        raise UsageError(f"{out} holds nothing sealed, so that it has no recipients")
    signed = read_signature(out)
    wanted = None if owner is None else pinned_fingerprint(owner)
    if wanted is not None and (signed is None or signed.fingerprint != wanted):
        check(out, wanted)
    there = {path.stem for path in (out / RECIPIENTS).glob("*.age")}
    names = [*manifest.sealed.recipients, *sorted(there - set(manifest.sealed.recipients))]
    rows = [_row(out, name, manifest.sealed, signed) for name in names]
    who = "nobody signed it" if signed is None else f"the signature of {spoken(signed.fingerprint)} does not cover it"
    problems = [f"{RECIPIENTS}/{row['name']}.age opens the originals, but {who}" for row in rows if not row["covered"]]
    return {"signed_by": signed and signed.fingerprint, "recipients": rows, "problems": problems}


def run_rekey(
    out: Path,
    *,
    drop: Sequence[str] = (),
    key: Path | None = None,
    identity: Path | None = None,
    progress: Display | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Seal the originals anew under a new content key, for the same recipients or fewer.

    Copies that were fetched before stay readable for everybody who could open them.

    Args:
        out: The published folder.
        drop: Names of recipients that are left out.
        key: Private key that opens the folder; ``OUT.private/owner.agekey`` by default.
        identity: The owner's key that signs (PEM); the default one where not given.
        progress: Shows images.
        dry_run: Check only.

    Returns:
        ``out``, ``recipients`` (names), ``dropped``, ``images``, and ``fingerprint`` of the signature (None in a dry
        run).

    Raises:
        UsageError: A recipient's public key is not known, or it was wrapped by the program ``age``; nothing is sealed,
            or the folder is not signed by the owner.
        UnknownNameError: There is no recipient of that name.
        IntegrityError: Manifest, signature, a shard or a recipient's file were changed.
    """
    progress = progress or Silent()
    with owned_folder(out, identity) as owned:
        record = owned.record
        for name in drop:
            if name not in record.recipients:
                raise UnknownNameError("recipient", name, record.recipients)
        opener = read_identity(key or owned.private / OWNER_KEY)
        sealed = open_folder(out, opener)
        keys = owned.known_keys()
        kept = [name for name in record.recipients if name not in drop]
        unknown = next((name for name in kept if name not in keys), None)
        if unknown is not None:
            raise UsageError(
                f"the public key of recipient '{unknown}' is not known here; give --drop {unknown}, and grant it anew"
            )
        if not kept:
            raise UsageError("expected at least one recipient that stays; leave the owner's out of --drop")
        count = sum(shard.count for shard in record.shards)
        result = {"out": str(out), "recipients": kept, "dropped": list(drop), "images": count}
        if dry_run:
            return {**result, "fingerprint": None}
        with owned.hold.staged(out) as staging, progress.stage("seal anew") as on_progress:
            fresh = ContentKey.new()
            shards = []
            done = 0
            for shard in record.shards:
                reader = ShardReader(out, shard, sealed.key, record.data_set)
                with ShardWriter(
                    staging, shard.path, fresh, record.data_set, split=shard.split, count=shard.count
                ) as writer:
                    for group in range(len(reader.groups)):
                        rows = reader.read(group)
                        for row in rows:
                            writer.write(row)
                        done += len(rows)
                        on_progress(done, count, {})
                        del rows
                    shards.append(writer.close())
                reader.close()
            entries = {name: write_wrapped(staging, name, fresh, parse_recipients(keys[name])[0]) for name in kept}
            changed = record.model_copy(update={"shards": tuple(shards), "recipients": entries})
            changed = changed.marked(fresh, owned.manifest.model_dump(mode="json"))
            moved = [(staging / name, out / name) for name in (SEALED, RECIPIENTS)]
            fingerprint = owned.change(staging, changed, moved, {name: keys[name] for name in kept})
    return {**result, "fingerprint": fingerprint}


def _row(out: Path, name: str, record: SealedRecord, signed: Signed | None) -> dict[str, Any]:
    entry = record.recipients.get(name)
    return {
        "name": name,
        "kind": "not listed in manifest.json" if entry is None else entry.kind,
        "covered": signed is not None and signed.covers(out, f"{RECIPIENTS}/{name}.age"),
    }


def _check_name(name: str, record: SealedRecord) -> None:
    refuse(
        {
            f"expected a recipient's name of letters, digits, dots and dashes, got '{name}'; give another --name": (
                re.fullmatch(RECIPIENT_NAME, name) is None
            ),
            f"there is a recipient named '{name}' already; give another --name": (
                name.casefold() in {other.casefold() for other in record.recipients}
            ),
        }
    )
