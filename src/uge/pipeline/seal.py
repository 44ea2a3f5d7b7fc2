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
from uge.files import Move, locked, read_bytes, storage_errors, write_atomic
from uge.publishing import Manifest, private_folder
from uge.publishing.private import CLAIMS, MODE, OWNER_KEY, keep_claims
from uge.sealing import OWNER, Recipient, Sealing, make_identity, parse_recipients, read_identity
from uge.sealing.age import library
from uge.sealing.record import RECIPIENT_NAME

log = logging.getLogger(__name__)


def check_sealing(publishing: PublishConfig) -> dict[str, Recipient]:
    """Recipients that the settings name, besides the owner; empty where nothing is sealed.

    Raises:
        UsageError: A key is refused, two recipients have one name, settings contradict one another, or the library
            that seals is not installed.
    """
    asked = bool(publishing.to or publishing.anonymous or publishing.keep_metadata or publishing.sealed_only)
    refuse(
        {
            "--to, --anonymous, --keep-metadata and --sealed-only are about sealed originals, which --no-seal leaves "
            "out; give one or the other": asked and not publishing.seal
        }
    )
    if not publishing.seal:
        return {}
    library()
    named: dict[str, Recipient] = {}
    for text in publishing.to:
        (recipient,) = parse_recipients(text)
        name = recipient_name(text, recipient)
        if name in named or name == OWNER:
            raise UsageError(f"two recipients are named '{name}'; rename one of their files")
        named[name] = recipient
    Sealing({OWNER: Recipient("", "x25519"), **named})  # Refuses a key that comes twice.
    return named


def recipient_name(text: str, recipient: Recipient) -> str:
    """Name of a recipient: that of its key's file, else the first digits of the key's fingerprint."""
    if Path(text).is_file():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name.split(".")[0]).strip("._-")
        if re.fullmatch(RECIPIENT_NAME, name):
            return name
    return f"key-{recipient.fingerprint[:8]}"


def sealing_of(publishing: PublishConfig, private: Path) -> Sealing | None:
    """Recipients of a publication; the owner's key is made in the private folder unless it is there.

    Args:
        publishing: Settings, see :func:`check_sealing`.
        private: The private folder, which exists.

    Raises:
        UsageError: See :func:`check_sealing`; or the owner's key cannot be read.
        StorageError: It cannot be written.
    """
    named = check_sealing(publishing)
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
    return Sealing(everyone, publishing.keep_metadata)


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
            return [(secret / name, private / name) for name in (OWNER_KEY, CLAIMS)]

        yield sealing_of(publishing, secret), finish


def sealed_only_images(source: str, publishing: PublishConfig, images: ImageSet) -> ImageSet | None:
    """Images of the split that is sealed without public copies; None where no such split is asked for.

    Raises:
        UsageError: It is the split that is published.
        DataError: The source has no such split, or its classes are others.
    """
    if publishing.sealed_only is None:
        return None
    apart = load_images(source, split=publishing.sealed_only)
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
