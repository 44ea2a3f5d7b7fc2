"""Recipients of the originals of a publication: the owner's own key, and those that the settings name."""

import contextlib
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from uge.config import PublishConfig
from uge.data import ImageSet, load_images
from uge.errors import DataError, UsageError, refuse
from uge.files import Move, locked, read_bytes, storage_errors, write_atomic, write_json
from uge.publishing import Manifest, private_folder
from uge.publishing.private import CLAIMS, MODE, OWNER_KEY, PUBLIC_KEYS, keep_claims
from uge.requests.originals import OriginalsRequest
from uge.requests.signed import recipient_of
from uge.sealing import OWNER, Recipient, Sealing, make_identity, parse_recipients, read_identity
from uge.sealing.age import library
from uge.sealing.record import RECIPIENT_NAME
from uge.sealing.signing_key import open_identity
from uge.sealing.writer import recipient_name

log = logging.getLogger(__name__)
NOBODY: Mapping[str, Recipient] = {}


def check_sealing(publishing: PublishConfig, asked: Mapping[str, Recipient] = NOBODY) -> dict[str, Recipient]:
    """Recipients that the settings name, besides the owner; empty where nothing is sealed.

    Args:
        publishing: Settings.
        asked: More recipients by name, of requests.

    Raises:
        UsageError: A key is refused, two recipients have one name, settings contradict one another, or the library
            that seals is not installed.
    """
    settings = bool(publishing.to or publishing.anonymous or publishing.keep_metadata or publishing.sealed_only)
    refuse(
        {
            "a request asks for the originals, which --no-seal leaves out; give one or the other": (
                bool(asked) and not publishing.seal
            ),
            "--to, --anonymous, --keep-metadata and --sealed-only are about sealed originals, which --no-seal leaves "
            "out; give one or the other": settings and not publishing.seal,
        }
    )
    if not publishing.seal:
        return {}
    library()
    named: dict[str, Recipient] = dict(asked)
    for text in publishing.to:
        (recipient,) = parse_recipients(text)
        name = recipient_name(text, recipient)
        if name in named or name == OWNER:
            raise UsageError(f"two recipients are named '{name}'; rename one of their files")
        named[name] = recipient
    Sealing({OWNER: Recipient("", "x25519"), **named})  # Refuses a key that comes twice.
    return named


def asked_recipients(originals: Mapping[Path, OriginalsRequest]) -> dict[str, Recipient]:
    """Recipients that requests for originals name, each called as the request's file.

    Raises:
        UsageError: A file's name is none for a recipient, two are alike, or a key cannot be used.
    """
    asked: dict[str, Recipient] = {}
    for path, request in originals.items():
        name = path.stem
        if name in asked or name == OWNER or not re.fullmatch(RECIPIENT_NAME, name):
            raise UsageError(f"the request {path} gives its recipient a name that cannot be used; rename the file")
        asked[name] = recipient_of(path, request)
    return asked


def sealing_of(publishing: PublishConfig, private: Path, asked: Mapping[str, Recipient] = NOBODY) -> Sealing | None:
    """Recipients and signer of a publication; the owner's keys are made unless they are there.

    Args:
        publishing: Settings, see :func:`check_sealing`.
        private: The private folder, which exists. It keeps the public keys of all recipients by name.
        asked: More recipients by name, of requests.

    Raises:
        UsageError: See :func:`check_sealing`; or the owner's key cannot be read.
        StorageError: It cannot be written.
    """
    named = check_sealing(publishing, asked)
    if not publishing.seal:
        return None
    path = private / OWNER_KEY
    owner = read_identity(path).recipient if path.exists() else make_identity(path)
    if owner is None:
        raise UsageError(f"expected {path} to be a private key of uge keygen, got a content key; move it away")
    everyone: Mapping[str, Recipient] = {OWNER: owner, **named}
    if publishing.anonymous:
        shuffled = list(everyone.values())
        secrets.SystemRandom().shuffle(shuffled)
        everyone = {str(number): recipient for number, recipient in enumerate(shuffled, 1)}
        if any(recipient.kind == "ssh-ed25519" for recipient in shuffled):
            log.warning(
                "recipients are numbered, but a file that is wrapped to an ssh key has a tag by which anybody who "
                "knows that public key finds it; ask for an age key (uge keygen) where this must stay unknown"
            )
    write_json(private / PUBLIC_KEYS, {name: recipient.text for name, recipient in everyone.items()})
    return Sealing(
        everyone,
        publishing.keep_metadata,
        open_identity(None if publishing.identity is None else Path(publishing.identity)),
    )


@contextlib.contextmanager
def owners_folder(
    out: Path, publishing: PublishConfig
) -> Iterator[tuple[Sealing | None, Callable[[Manifest], list[Move]]]]:
    """Recipients of a publication that keeps no secret but the owner's key, which goes to ``OUT.private``.

    A key of the owner that is there stays, and so does everything else in that folder.

    Args:
        out: The published folder, whose lock is held.
        publishing: Settings, see :func:`check_sealing`.

    Yields:
        The recipients, and what takes its place together with the published folder.
    """
    private = private_folder(out)
    if not publishing.seal:
        yield None, lambda manifest: []
        return
    with locked(out) as hold, storage_errors(private), hold.staged(private, mode=MODE) as secret:
        if (private / OWNER_KEY).is_file():
            write_atomic(secret / OWNER_KEY, read_bytes(private / OWNER_KEY), secret=True)

        def finish(manifest: Manifest) -> list[Move]:
            keep_claims(secret, manifest)
            if not private.exists():
                return [(secret, private)]
            return [(secret / name, private / name) for name in (OWNER_KEY, PUBLIC_KEYS, CLAIMS)]

        yield sealing_of(publishing, secret), finish


def sealed_only_images(source: str, publishing: PublishConfig, images: ImageSet) -> ImageSet | None:
    """Images of the split that is sealed without public copies; None where no such split is asked for.

    Raises:
        UsageError: It is the split that is published.
        DataError: The source has no such split, or its classes are others.
    """
    if publishing.sealed_only is None:
        return None
    apart = load_images(source, split=publishing.sealed_only, labels=images.labelled)
    refuse(
        {
            f"--sealed-only {publishing.sealed_only} is the split that is published; name another": apart.split
            == images.split
        }
    )
    refuse(
        {
            f"the split '{apart.split}' has other classes than '{images.split}'; give both the same": (
                apart.classes != images.classes
            )
        },
        DataError,
    )
    return apart.check()
