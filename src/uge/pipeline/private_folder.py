"""The folder of a run under way: what it may replace, how it resumes, when it goes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uge.errors import OutputExistsError, UsageError
from uge.files import check_output, holds_something, read_json, storage_errors, write_json
from uge.publishing import create_private, is_private, is_published, private_folder
from uge.session import Session

FEDERATION = "federation.json"
_FINISHED = (
    *("trajectory.json", "*.checkpoint.safetensors", "encoder.safetensors", "generator.safetensors"),
    "delta.int*",
)
"""Files that are worth keeping after a failure: what they hold took training."""


class PrivateWork:
    """Where a protection run keeps its secrets and checkpoints.

    A run that replaces an earlier one works in ``OUT.private.new``: the old keys stay beside the old
    published folder, and usable with it, until the new copy is published.

    Args:
        out: The published folder.
        source: What is protected, if it is a path; no output may overlap it.
        session: Says whether to resume or to overwrite.

    Raises:
        OutputExistsError: Something is there already and may not be replaced.
        UsageError: An output overlaps the source, or holds what this package did not write, or both resume and
            overwrite are asked for.
    """

    def __init__(self, out: Path, source: Path | None, session: Session) -> None:
        _check_either(session)
        self.private = private_folder(out)
        self._out, self._new = out, self.private.with_name(f"{self.private.name}.new")
        self._session = session
        for place in (out, self.private, self._new):
            check_output(place, source=source, overwrite=True)
        held = holds_something(self.private)
        if session.overwrite:
            self.folder = self._new if held else self.private
        else:
            self.folder = self._new if _state(self._new).is_file() else self.private
        self.resuming = session.resume and _state(self.folder).is_file()
        may_replace = session.overwrite or self.resuming
        if not may_replace and (held or holds_something(self._new)):
            raise OutputExistsError(
                f"{self.folder} holds an earlier run; give --resume to go on with it or --overwrite to start again"
                if _state(self.folder).is_file()
                else f"{self.private} is not empty; choose another output or give --overwrite"
            )
        for folder in (self.private, self._new):
            check_output(folder, overwrite=True, ours=is_private)
        check_output(out, overwrite=may_replace, ours=is_published)

    @contextlib.contextmanager
    def opened(self, fingerprint: str, about: dict[str, Any]) -> Iterator[None]:
        """Hold the folder open for the block that does the work.

        When the block succeeds, the folder takes the place of the one that it replaces. When it
        fails, the folder stays for ``--resume`` if anything in it took training, and goes if not.

        Args:
            fingerprint: Of everything that determines the result.
            about: What ``uge inspect`` is to say of the run.

        Raises:
            UsageError: The run to resume has other settings.
            StorageError: The folder cannot be made.
        """
        state = _state(self.folder)
        if self.resuming and read_json(state).get("fingerprint") != fingerprint:
            raise UsageError(
                f"the run in {self.folder} has other settings, images or precision than this one; "
                "repeat the command as it was, or give --overwrite to start again"
            )
        try:
            if self._session.overwrite and self._new.exists():
                with storage_errors(self._new):
                    shutil.rmtree(self._new)
            create_private(self.folder, published=self._out)
            if not self.resuming:
                write_json(state, {"fingerprint": fingerprint, **about})
            yield
            write_json(self.folder / "run" / "done.json", {"finished": True})
            if self.folder != self.private:
                _replace(self.private, self.folder)
        except BaseException:
            if not any(True for pattern in _FINISHED for _ in self.folder.rglob(pattern)):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def finished(self) -> bool:
        """Whether the run in the folder ended, and its published folder is there."""
        return (self.folder / "run" / "done.json").is_file() and (self._out / "manifest.json").is_file()


class FederationWork:
    """The folder of a federation under way: one that replaces an earlier one works beside it until it is finished.

    Args:
        out: The folder of the federation.
        source: What is divided, if it is a path; no output may overlap it.
        session: Says whether to resume or to overwrite.

    Raises:
        OutputExistsError: Something is there already and may not be replaced.
        UsageError: The output overlaps the source, or both resume and overwrite are asked for.
    """

    def __init__(self, out: Path, source: Path | None, session: Session) -> None:
        _check_either(session)
        check_output(out, source=source, overwrite=True)
        self._out, self._new, self._session = out, out.with_name(f"{out.name}.new"), session
        held = holds_something(out)
        if held and not (out / FEDERATION).is_file():
            raise OutputExistsError(f"{out} is not empty and holds no federation; choose another output")
        started = (self._new / FEDERATION).is_file()
        self.place = self._new if (started or session.overwrite) and held else out
        if not (session.resume or session.overwrite) and (held or started):
            raise OutputExistsError(f"{out} holds a federation; give --resume to go on or --overwrite to start again")

    @contextlib.contextmanager
    def opened(self, wanted: str) -> Iterator[Path]:
        """Hold the folder for the block that does the work; what was finished in it stays when the block fails.

        Raises:
            UsageError: The run to resume has other settings or images.
        """
        state = self.place / FEDERATION
        with storage_errors(self.place):
            if self._session.overwrite and self.place == self._new:
                shutil.rmtree(self._new, ignore_errors=True)
        if state.is_file() and read_json(state).get("fingerprint") != wanted:
            raise UsageError(
                f"the federation in {self.place} has other images or settings than this one; repeat the command as it "
                "was, or give --overwrite to start again"
            )
        create_private(self.place)
        write_json(state, {"fingerprint": wanted})
        yield self.place
        if self.place == self._new:
            _replace(self._out, self._new)


def _check_either(session: Session) -> None:
    if session.resume and session.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite starts again; give only one of them")


def _replace(old: Path, new: Path) -> None:
    """Put ``new`` in the place of ``old``, which is gone only after that."""
    retired = old.with_name(f".{old.name}.retired")
    with storage_errors(old):
        shutil.rmtree(retired, ignore_errors=True)
        if old.exists():
            old.rename(retired)
        new.rename(old)
        shutil.rmtree(retired, ignore_errors=True)


def _state(folder: Path) -> Path:
    return folder / "run" / "run.json"
