"""The report of a run that is still training, written anew every so often."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from opsin.core.errors import OpsinError
from opsin.report.page import rewrite

EVERY = 30.0
"""Seconds between two reports, at least."""

SHARE = 0.02
"""The largest share of the time that writing them takes."""


class LiveReport:
    """Writes RUN/report.html when `update` is called and it is time; a report that fails is told, and ends nothing."""

    def __init__(self, run: Path, on_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._on_line = on_line
        self._clock = clock
        self._due = clock() + EVERY
        self._failed = False

    def update(self) -> None:
        """After a step."""
        if self._clock() >= self._due:
            self.write()

    def write(self) -> None:
        """Now: at the end of a stage, or of the run."""
        began = self._clock()
        try:
            rewrite(self._run)
        except (OpsinError, OSError) as error:
            if not self._failed:
                self._on_line(f"the report could not be written: {error}; the training goes on")
            self._failed = True
        ended = self._clock()
        self._due = ended + max(EVERY, (ended - began) / SHARE)
