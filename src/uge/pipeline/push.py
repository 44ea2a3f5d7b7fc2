"""Upload of a published folder to the Hugging Face hub, after a check: ``uge push``."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uge import extras
from uge.errors import DataError, IntegrityError, UsageError
from uge.progress import Display
from uge.publishing.manifest import MANIFEST, read_manifest
from uge.publishing.verify import verify
from uge.sealing.signature import SIGNATURE

Gate = Literal["auto", "manual"]
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Pushed:
    """An upload: repository, its address, the commit, and the number of files; no commit in a dry run."""

    repository: str
    url: str
    commit: str | None
    files: int


def run_push(
    out: Path,
    repository: str,
    progress: Display,
    *,
    private: bool = False,
    gated: Gate | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Verify a published folder and upload it as a data set, in one commit.

    Nothing but the files that the manifest lists goes up: no private folder, no audit, nothing that lies beside. The
    token is that of ``hf auth login``, or of the variable ``HF_TOKEN``.

    Args:
        out: The published folder.
        repository: ``owner/name`` on the hub, made where it does not exist.
        progress: Shows images as they are checked.
        private: Make a new repository private.
        gated: Ask readers for their name before they get the files: granted to each (``"auto"``) or by hand.
        message: Message of the commit.
        dry_run: Check, and upload nothing.

    Raises:
        UsageError: The name is no ``owner/name``, or the folder is not a published one.
        MissingExtraError: The library ``huggingface_hub`` is not installed.
        IntegrityError: The folder deviates from its manifest; nothing was uploaded.
        DataError: The hub refused; the message has its reason.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"expected a repository owner/name, got '{repository}'; the owner is your hub name or a team")
    manifest = read_manifest(out)
    with progress.stage("verify") as on_progress:
        found = verify(out, progress=lambda done: on_progress(done, manifest.count, {}))
    if not found.ok:
        raise IntegrityError(list(found.problems))
    files = [record.path for record in manifest.listed] + [MANIFEST]
    files += [SIGNATURE] if (out / SIGNATURE).is_file() else []
    library = extras.load("huggingface_hub", "hf", "uge push")
    endpoint = os.environ.get("HF_ENDPOINT") or library.constants.ENDPOINT
    url = f"{endpoint}/datasets/{repository}"
    if dry_run:
        return Pushed(repository, url, None, len(files))
    api = library.HfApi(endpoint=endpoint)
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        if gated is not None:  # Before the files are there.
            api.update_repo_settings(repository, repo_type="dataset", gated=gated)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=out,
            allow_patterns=files,
            commit_message=message or f"{manifest.count} protected images",
        )
    except Exception as error:  # Network, access, name: the library has no common base class.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the hub took nothing of {out} ({reason}); check the name, the network and your access (hf auth login)"
        ) from error
    return Pushed(repository, url, getattr(commit, "oid", None), len(files))
