"""Run a package client as a subprocess, with progress from the size of the folder that it fills."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from opsin.core.errors import AssetError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from rich.console import Console

POLL_SECONDS = 0.1
STALL_SECONDS = 180.0
"""A client that writes nothing for this long is stopped (pip's own retries take about 90 seconds)."""
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ToolResult:
    """How a command ended."""

    command: tuple[str, ...]
    code: int
    output: str
    errors: str

    @property
    def summary(self) -> str:
        """The command, its exit code and the last line of its complaint, in one sentence."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return f"`{shlex.join(self.command)}` gave exit code {self.code} ({lines[-1] if lines else 'and no message'})"


def run_tool(
    command: list[str], *, folder: Path, title: str, console: Console, num_bytes: int | None = None
) -> ToolResult:
    """Run a command in `folder`, which also holds its temporary files, and show how much of `num_bytes` is there.

    Raises:
        AssetError: nothing was written for `STALL_SECONDS`.
    """
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )
        try:
            with _progress(console) as progress:
                _watch(process, folder, title, num_bytes, progress)
        finally:
            _stop(process)
        return ToolResult(tuple(command), process.returncode, _text(output), _text(errors))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def _watch(process: subprocess.Popen[bytes], folder: Path, title: str, num_bytes: int | None, bar: Progress) -> None:
    """Wait for the process while it makes headway."""
    task = bar.add_task(title, total=num_bytes)
    before = seen = folder_bytes(folder)
    moved = time.monotonic()
    while process.poll() is None:
        now, size = time.monotonic(), folder_bytes(folder)
        if size != seen:
            seen, moved = size, now
            done = max(size - before, 0)
            bar.update(task, completed=done if num_bytes is None else min(done, num_bytes))
        elif now - moved > STALL_SECONDS:
            raise AssetError(
                f"{title}: nothing arrived for {STALL_SECONDS:.0f} s, {seen - before:,} bytes so far; stopped "
                f"`{shlex.join(map(str, process.args))}`. Check the network, then run this again."  # type: ignore[arg-type]
            )
        time.sleep(POLL_SECONDS)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder that is changing meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size  # noqa: PTH116, PTH118 (polled: keep it cheap)
            except FileNotFoundError:
                continue  # renamed or removed since it was listed
    return total


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process if it still runs (we were interrupted, or it stalled)."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
