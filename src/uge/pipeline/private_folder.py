"""The folder of a run under way: replacing, resuming and removing it, and the keys in it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uge.config import ProtectConfig
from uge.errors import DataError, OutputExistsError, StorageError, UsageError
from uge.files import (
    Hold,
    Move,
    check_output,
    holds_something,
    locked,
    read_json,
    storage_errors,
    write_atomic,
    write_json,
)
from uge.learning.recipes import Recipe
from uge.methods.authorized import draw_seed
from uge.networks import ImageClassifier, save_weights
from uge.networks.standalone import has_standalone, standalone_source
from uge.publishing import create_private, is_private, is_published, private_folder
from uge.publishing.private import DONE, MODE, STATE
from uge.session import Session

FEDERATION = "federation.json"
_FINISHED = (
    "trajectory.json",
    "*.checkpoint.safetensors",
    "encoder.safetensors",
    "generator.safetensors",
    "delta.int*",
)
"""Files for which a folder stays after a failure: making them took long."""


class _Replacing:
    """A folder of a run that works beside an earlier one, ``FOLDER.new``, until it is finished."""

    folder: Path

    def __init__(self, place: Path, source: Path | None, session: Session) -> None:
        if session.resume and session.overwrite:
            raise UsageError("--resume goes on with a run and --overwrite starts again; give only one of them")
        self.place = place
        self._new = place.with_name(f"{place.name}.new")
        self._session = session
        for folder in (place, self._new):
            check_output(folder, source=source, overwrite=True)
        self._held = holds_something(place)

    def _clear(self, hold: Hold) -> None:
        """Remove the replacement that an earlier run left."""
        if self._session.overwrite:
            with storage_errors(self._new):
                hold.remove(self._new)

    def _moves(self) -> list[Move]:
        return [] if self.folder == self.place else [(self.folder, self.place)]

    def _check_same(self, kind: str, parts: str, before: Any, now: Any) -> None:
        if before != now:
            raise UsageError(
                f"the {kind} in {self.folder} has other {parts} than this one; repeat the command as it was, or give "
                "--overwrite to start again"
            )


class PrivateFolder(_Replacing):
    """Secrets and checkpoints of a protection run.

    A run that replaces an earlier one works in ``OUT.private.new``: the old keys stay beside the old
    published folder, and usable with it, until the new copy is published.

    Args:
        out: The published folder.
        source: The protected images, if they are a path; no output may overlap it.
        session: Says whether to resume or to overwrite.

    Attributes:
        place: The private folder.
        folder: The folder of this run: ``place``, or its replacement.
        resuming: True for a run that goes on with an earlier one.

    Raises:
        OutputExistsError: An output exists and may not be replaced.
        UsageError: An output overlaps the source, or holds files that this package did not write, or both resume and
            overwrite are asked for.
    """

    def __init__(self, out: Path, source: Path | None, session: Session) -> None:
        super().__init__(private_folder(out), source, session)
        self._out = out
        check_output(out, source=source, overwrite=True)
        taken = self._held or holds_something(out)
        beside = taken if session.overwrite else (self._new / STATE).is_file()
        self.folder = self._new if beside else self.place
        started = (self.folder / STATE).is_file()
        self.resuming = session.resume and started
        may_replace = session.overwrite or self.resuming
        if not may_replace and (self._held or holds_something(self._new)):
            raise OutputExistsError(
                f"{self.folder} holds an earlier run; give --resume to go on with it or --overwrite to start again"
                if started
                else f"{self.place} is not empty; choose another output or give --overwrite"
            )
        for folder in (self.place, self._new):
            check_output(folder, overwrite=True, ours=_ours)
        check_output(out, overwrite=may_replace, ours=is_published)

    @contextlib.contextmanager
    def opened(self, fingerprint: str, about: dict[str, Any], *, trains: bool) -> Iterator[None]:
        """Hold the folder open for the block that makes and publishes the perturbation.

        The block ends the run with :meth:`seal`, and the folder takes the place of the one that it replaces together
        with the published folder. When the block fails, the folder stays for ``--resume`` if a file in it took long
        to make, and goes if not.

        Args:
            fingerprint: Of everything that determines the result.
            about: Summary for ``uge inspect``.
            trains: False where no stage takes long; then the folder goes, too, unless the disk failed or the run was
                interrupted.

        Raises:
            UsageError: The run to resume has other settings.
            StorageError: The folder cannot be made.
        """
        if self.resuming:
            self.check(read_json(self.folder / STATE).get("fingerprint"), fingerprint)
        with locked(self._out) as hold:
            hold.covers(self.place, self._new)
            try:
                self._begin(hold, {"fingerprint": fingerprint, **about})
                yield
            except BaseException as error:
                empty = not any(True for pattern in _FINISHED for _ in self.folder.rglob(pattern))
                # A full disk and an interruption say that --resume goes on; a source that cannot be read does not.
                disk = isinstance(error, StorageError | OSError) and not isinstance(error, DataError)
                fault = isinstance(error, Exception) and not disk
                cheap = fault and not trains and not self.resuming
                ended = hold.journal.moves or (self.folder / DONE).is_file()
                if (empty or cheap) and not ended:
                    with contextlib.suppress(OSError):
                        hold.remove(self.folder)
                raise

    def _begin(self, hold: Hold, state: dict[str, Any]) -> None:
        """Make the folder with its state at once: a folder without state could be neither resumed nor replaced."""
        self._clear(hold)
        create_private(self.folder, published=self._out)
        if self.resuming:
            return
        with storage_errors(self.folder), hold.staged(self.folder, mode=MODE) as fresh:
            write_json(fresh / STATE, state)
            hold.exchange([(fresh, self.folder)])

    def seal(self) -> list[Move]:
        """Mark the run as finished; gives the folder's move, which is made together with the published folder's."""
        write_json(self.folder / DONE, {"finished": True})
        return self._moves()

    def check(self, before: Any, now: Any) -> None:
        """Refuse to go on with a run of other settings or images.

        Raises:
            UsageError: The fingerprints differ.
        """
        self._check_same("run", "settings, images or precision", before, now)

    @property
    def finished(self) -> bool:
        """True where the run in the folder ended and its published folder is there."""
        in_place = self.folder == self.place
        return in_place and (self.folder / DONE).is_file() and (self._out / "manifest.json").is_file()


class FederationFolder(_Replacing):
    """The folder of a federation under way.

    Args:
        out: The folder of the federation.
        source: The divided images, if they are a path; no output may overlap it.
        session: Says whether to resume or to overwrite.

    Raises:
        OutputExistsError: An output exists and may not be replaced.
        UsageError: The output overlaps the source, or both resume and overwrite are asked for.
    """

    def __init__(self, out: Path, source: Path | None, session: Session) -> None:
        super().__init__(out, source, session)
        if self._held and not (out / FEDERATION).is_file():
            raise OutputExistsError(f"{out} is not empty and holds no federation; choose another output")
        started = (self._new / FEDERATION).is_file()
        self.folder = self._new if (started or session.overwrite) and self._held else out
        if not (session.resume or session.overwrite) and (self._held or started):
            raise OutputExistsError(f"{out} holds a federation; give --resume to go on or --overwrite to start again")

    @contextlib.contextmanager
    def opened(self, fingerprint: str, seed: int | None) -> Iterator[Path]:
        """Hold the folder open for a block; finished files stay when the block fails.

        Args:
            fingerprint: Of everything that determines the result.
            seed: Seed of the global network, kept for ``--resume``.

        Raises:
            UsageError: The run to resume has other settings or images.
        """
        state = self.folder / FEDERATION
        with locked(self.place) as hold:
            hold.covers(self._new)
            if self.folder == self._new:
                self._clear(hold)
            if state.is_file():
                self._check_same("federation", "images or settings", read_json(state).get("fingerprint"), fingerprint)
            create_private(self.folder)
            write_json(state, {"fingerprint": fingerprint, "authorized_seed": seed})
            yield self.folder
            with storage_errors(self.place):
                hold.exchange(self._moves())


def _ours(folder: Path) -> bool:
    """True for a private folder, or for one that holds nothing but an empty ``run/``."""
    return is_private(folder) or [path.name for path in folder.rglob("*")] == ["run"]


def key_path(folder: Path, number: int) -> Path:
    """Key file of an authorised network in a private folder."""
    return folder / f"authorized-{number}.key.safetensors"


def write_keys(folder: Path, networks: Sequence[ImageClassifier], recipe: Recipe) -> None:
    """Write θ0 of every authorised network with its recipe, and its definition in plain PyTorch where that is ours."""
    for number, network in enumerate(networks):
        save_weights(key_path(folder, number), network, {"recipe": recipe.model_dump_json()})
        if has_standalone(network.name):
            write_atomic(folder / f"authorized-{number}.network.py", standalone_source(network))


def with_seed(config: ProtectConfig, state: Path, *, resume: bool) -> ProtectConfig:
    """Settings with the seed of the keys: as stated, else that of the run to resume, else a new secret one.

    Args:
        config: Settings; with weights files in place of a seed they stay as they are.
        state: File in a private folder that keeps the seed as ``authorized_seed``.
        resume: Read ``state`` where it exists.
    """
    if config.authorized_seed is not None or config.authorized_weights:
        return config
    seed = read_json(state).get("authorized_seed") if resume and state.is_file() else None
    if not (seed is None or (type(seed) is int and seed >= 0)):
        raise DataError(
            f"{state} should hold a whole number as authorized_seed, got {seed!r}; it is damaged, start again"
        )
    return config.model_copy(update={"authorized_seed": draw_seed() if seed is None else seed})
