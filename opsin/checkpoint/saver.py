"""Saves a run's checkpoints beside its training, one at a time, and keeps as many of them as wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from torch import Tensor

from opsin.checkpoint.places import Place, place_of, shard_name
from opsin.checkpoint.shards import write_tensors
from opsin.checkpoint.store import candidates, commit, delete
from opsin.core.errors import CheckpointError
from opsin.core.files import write_text
from opsin.core.ranks import ALONE, Ranks

LATEST = "LATEST"
"""Names the checkpoint that was saved last, for people and scripts; nothing of opsin believes it."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, as of one moment.

    - `tensors`: this rank's tensors (`snapshot.whole_tensors`) by the beginning of their file's name
    - `write`: writes all other files into the folder given; called on rank 0, while training goes on
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    write: Callable[[Path], None]


@dataclass
class Saver:
    """The checkpoints of one run. All ranks make the same calls; `ranks` is used from a thread and by nobody else.

    - `background`: training goes on while a checkpoint is written
    - `keep`: so many checkpoints within stages are kept, the newest; the ends of stages all are
    - `keep_every`: those after a multiple of so many steps are kept too
    - `on_error`: what a save that failed does: `stop` raises its error, `continue` tells it
    """

    folder: Path
    ranks: Ranks = ALONE
    background: bool = True
    keep: int = 2
    keep_every: int | None = None
    on_error: Literal["stop", "continue"] = "stop"
    on_line: Callable[[str], None] = field(default=lambda _line: None)
    last: Path | None = None
    """The checkpoint that was committed last."""

    _thread: Thread | None = None
    _error: BaseException | None = None
    _notes: list[str] = field(default_factory=list)

    def save(self, place: Place, stage: str, take: Callable[[], Snapshot], *, wait: bool = False) -> Path:
        """Save a checkpoint, after the one that is being saved; returns where it will be, with `wait` where it is.

        `take` is called in this thread, when there is no other snapshot any more.

        Raises:
            CheckpointError: the save before this one failed and `on_error` is `stop`, or this one failed and is waited
                for (then whatever `on_error` says: nothing would tell later).
            TrainError: a rank is gone.
        """
        self._settle(raising=self.on_error == "stop" and not wait)  # an error before must not prevent the last save
        path = self.folder / place.name(stage)
        if not place.ordinary and path.exists():  # the run came to this place before, and fails here again
            return path
        snapshot = take()
        meta = {"stage": stage, "step": place.step, "done": place.done}
        self._thread = Thread(target=self._run, args=(path, snapshot, meta), name="saver", daemon=True)
        self._thread.start()
        if wait:
            self._settle(raising=True)
        elif not self.background:
            self.finish()
        return path

    def finish(self) -> None:
        """Wait for the save that is under way, if there is one.

        Raises:
            CheckpointError: it failed, and `on_error` is `stop`.
            TrainError: a rank is gone.
        """
        self._settle(raising=self.on_error == "stop")

    def close(self) -> None:
        """Wait for the save that is under way, when something else has ended the run: its error is only told."""
        try:
            self._settle(raising=False)
        except Exception as error:  # noqa: BLE001 (it must not hide what ended the run)
            self.on_line(f"the last checkpoint was not saved: {error}")

    def _settle(self, *, raising: bool) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        notes, self._notes = self._notes, []
        for note in notes:
            self.on_line(note)
        error, self._error = self._error, None
        if error is None:
            return
        if raising or not isinstance(error, CheckpointError):
            raise error
        self.on_line(f"{error}; training goes on, and the next save tries again")

    def _run(self, path: Path, snapshot: Snapshot, meta: dict[str, Any]) -> None:
        """The thread's work."""

        def write(folder: Path) -> None:
            for stem, tensors in snapshot.tensors.items():
                write_tensors(folder / shard_name(stem, self.ranks.rank, self.ranks.size), tensors)
            if self.ranks.rank == 0:
                snapshot.write(folder)

        try:
            self.last = commit(path, write, meta, self.ranks)
            if self.ranks.rank == 0:
                self._tidy(path)
        except BaseException as error:  # noqa: BLE001 (whatever it is, the training thread raises it at its next call)
            self._error = error

    def _tidy(self, path: Path) -> None:
        """Say what is newest, and delete what is not kept any more. The new checkpoint is safe, whatever fails here."""
        try:
            write_text(self.folder / LATEST, f"{path.name}\n")
            for old in superseded(candidates(self.folder), self.keep, self.keep_every):
                delete(old)
        except OSError as error:
            self._notes.append(
                f"{path} was saved, but an older checkpoint could not be deleted ({error.strerror or error})"
            )


def superseded(paths: list[Path], keep: int, keep_every: int | None) -> list[Path]:
    """The checkpoints that are not kept, of all of a run's, newest first.

    Kept are the ends of stages, the newest `keep` others, those after a multiple of `keep_every` steps, and folders of
    other names. An emergency checkpoint takes nobody's place, and goes when those newest are all newer.
    """
    middles = [(place, path) for path in paths if (place := place_of(path)) is not None and not place.done]
    ordinary = [(place, path) for place, path in middles if place.ordinary]
    newest = {path for _, path in ordinary[:keep]}
    dropped = [
        path for place, path in ordinary if path not in newest and not (keep_every and place.step % keep_every == 0)
    ]
    if newest:
        oldest = min(place for place, path in ordinary if path in newest)
        dropped += [path for place, path in middles if not place.ordinary and place < oldest]
    return dropped
