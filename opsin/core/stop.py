"""Signals that end a run in good order: they are remembered, and the run looks when a step is finished."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C, the request of a scheduler or of `kill`, the warning that schedulers can be told to give earlier, and a
terminal that is closed."""

SHOW_CURSOR = b"\x1b[?25h"
NOTICE = b"\nfinishing the step, then saving; Ctrl-C again: leave at once\n"


class Stop:
    """Remembers, while inside, the first signal that asks the run to end; Ctrl-C after it leaves at once.

    That is harmless: a checkpoint is there only when it is whole. Outside of the main thread, where Python takes no
    signals, nothing is installed and nothing is ever wanted.
    """

    def __init__(self, notice: bytes = NOTICE) -> None:
        """`notice` tells, on standard error, what happens now."""
        self._notice = notice
        self.wanted: int | None = None
        """The signal's number."""
        self._process = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int | None:
        """What to end with, as shells report a signal: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1 (on Linux)."""
        return None if self.wanted is None else 128 + self.wanted

    def __enter__(self) -> Stop:
        """Install the handlers."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores one
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which has no step to finish: it ends as if nothing was here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.wanted is None:
            self.wanted = number
            with suppress(OSError):  # nobody reads it any more
                os.write(2, self._notice)  # not through sys.stderr, which may be in the middle of a write
        elif number == signal.SIGINT:
            if os.isatty(2):  # a progress bar hides the cursor
                os.write(2, SHOW_CURSOR)
            os._exit(128 + number)
