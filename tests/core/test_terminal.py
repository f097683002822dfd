from __future__ import annotations

from opsin.core.terminal import printable


def test_nothing_steers_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\tc\n\ud800\x9b") == "a�[2Jb�\tc\n��"
