"""Row T3 of the faults: a worker of the loader that is killed, hangs or fails, each told with the sample it held."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opsin.core.errors import (
    DamagedPictureError,
    DataError,
    LoaderError,
    MissingExtraError,
    OpsinError,
    RecipeError,
)
from opsin.core.types import Picture
from opsin.data.loader import Loader
from tests.support.loading import PACKS, Watched, nothing_left, samples
from tests.support.models import tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opsin.core.types import Example
    from opsin.data.example import Preparation

BAD = 2
"""Sample 2 of the 3 of the third pack, which the first of two workers makes."""

DEAL = {"workers": 2, "name_of": "data.json:{}: (it)".format}
HELD = r"data\.json:2: \(it\), sample 2 of the 3 of its pack"


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    return tiny_vlm(tmp_path_factory.mktemp("model"))[1]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, prepare: Preparation) -> list[Example]:
    return samples(tmp_path_factory.mktemp("pictures"), prepare)


def at_bad(fault: Callable[[], object]) -> Callable[[int], object]:
    return lambda i: fault() if i == BAD else None


def refuse(error: Exception) -> None:
    raise error


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def failed(examples: Sequence[Example], prepare: Preparation, good: int = 2, **options: object) -> OpsinError:
    """The error that follows `good` batches; nothing is left behind, and the loader gives no more."""
    with nothing_left():
        loader = Loader(examples, prepare, PACKS, **{**DEAL, **options})  # type: ignore[arg-type]
        for _ in range(good):
            next(loader)
        with pytest.raises(OpsinError) as caught:
            next(loader)
        with pytest.raises(LoaderError, match="closed"):
            next(loader)
    return caught.value


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGKILL, r"was killed \(signal 9: often a lack of memory\)"),
        (signal.SIGTERM, r"was killed \(signal 15: Terminated\)"),
    ],
)
def test_a_killed_worker_is_told_with_the_sample_it_held(
    examples: list[Example], prepare: Preparation, number: int, how: str
) -> None:
    error = failed(Watched(examples, at_bad(lambda: die(number))), prepare)
    assert isinstance(error, LoaderError)
    assert re.search(rf"^worker 0 \(process \d+\) {how}.* while reading {HELD}; try", str(error))


def test_a_worker_killed_while_the_run_is_busy_interrupts_nothing_and_is_told_at_its_turn(
    examples: list[Example], prepare: Preparation
) -> None:
    with Loader(examples, prepare, PACKS, workers=2) as loader:
        next(loader)
        next(worker for worker in multiprocessing.active_children() if worker.name == "loader-1").kill()
        time.sleep(0.1)
        with pytest.raises(LoaderError, match=r"^worker 1 \(process \d+\) was killed"):
            list(loader)


def test_a_worker_that_leaves_is_told_with_its_status(examples: list[Example], prepare: Preparation) -> None:
    error = failed(Watched(examples, at_bad(lambda: os._exit(3))), prepare)
    assert "ended with status 3 while reading data.json:2: (it)" in str(error)


@pytest.mark.parametrize("fault", [lambda: time.sleep(60), lambda: die(signal.SIGSTOP)], ids=["sleeps", "is stopped"])
def test_a_hung_worker_is_told_with_its_sample_after_the_timeout(
    examples: list[Example], prepare: Preparation, fault: Callable[[], object]
) -> None:
    begun = time.monotonic()
    error = failed(Watched(examples, at_bad(fault)), prepare, timeout=1.5)
    assert isinstance(error, LoaderError)
    assert "hangs: 1.5 seconds reading data.json:2: (it), sample 2 of the 3 of its pack; " in str(error)
    assert time.monotonic() - begun < 10


def test_a_medium_that_hangs_is_told_as_decoding(
    examples: list[Example], prepare: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pixels(medium: object, *_: object) -> None:
        time.sleep(60)

    monkeypatch.setattr("opsin.data.collate.medium_pixels", pixels)
    assert "seconds decoding data.json:5: (it), sample 1 of the 2" in str(failed(examples, prepare, 1, timeout=0.3))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_data_comes_as_it_is(examples: list[Example], prepare: Preparation, workers: int) -> None:
    made = DataError(["data.json:2: (it) no answer", "data.json:2: (it) no question"])
    error = failed(Watched(examples, at_bad(lambda: refuse(made))), prepare, workers=workers)
    assert isinstance(error, DataError)
    assert (str(error), error.problems) == (str(made), made.problems)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_only_when_decoded_is_named(
    examples: list[Example], prepare: Preparation, tmp_path: Path, workers: int
) -> None:
    medium = examples[BAD].media[0]
    assert isinstance(medium, Picture)
    assert medium.path is not None
    (tmp_path / "half.png").write_bytes(medium.path.read_bytes()[:100])
    half = replace(examples[BAD], where="data.json:2", media=(Picture(path=tmp_path / "half.png"),) * 2)
    error = failed([*examples[:BAD], half, *examples[BAD + 1 :]], prepare, workers=workers)
    assert type(error) is DamagedPictureError
    assert str(error).startswith("data.json:2: (two-0) ")
    assert "half.png" in str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_nobody_foresaw_names_the_sample_and_keeps_its_traceback(
    examples: list[Example], prepare: Preparation, workers: int
) -> None:
    error = failed(Watched(examples, at_bad(lambda: refuse(ZeroDivisionError("by nothing")))), prepare, workers=workers)
    assert isinstance(error, LoaderError)
    assert str(error) == "reading data.json:2: (it), sample 2 of the 3 of its pack: ZeroDivisionError: by nothing"
    assert "in refuse\n" in error.__notes__[0]


def test_a_sample_without_a_name_is_told_by_its_number(examples: list[Example], prepare: Preparation) -> None:
    with (
        Loader(Watched(examples, at_bad(lambda: die(signal.SIGKILL))), prepare, PACKS, workers=2) as loader,
        pytest.raises(LoaderError, match="while reading sample number 2, sample 2 of the 3"),
    ):
        list(loader)


@pytest.mark.parametrize(
    "error",
    [
        DataError(["a:1: x", "b:2: y"]),
        RecipeError("r.yaml", ["x"]),
        MissingExtraError("av", "video"),
        DamagedPictureError("p"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_go_from_process_to_process_unchanged(error: OpsinError) -> None:
    error.add_note("seen at night")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


PARENT = """
    import time
    from types import SimpleNamespace
    import numpy as np
    from opsin.core.types import Example
    from opsin.data.loader import Loader
    from opsin.data.plan import Pack
    from opsin.vision.positions import Sequential

    class Slow(list):
        def __getitem__(self, i):
            time.sleep(30 if i == 2 else 0)
            ids, no = np.arange(3), np.zeros(3, dtype=bool)
            return Example("x", "", ids, no, no, ids[None], (), (), ())

    try:
        prepare = SimpleNamespace(spliced=True, positions=Sequential())
        for batch in Loader(Slow(), prepare, [Pack((i,), 3, 0, 0) for i in range(9)], workers=3):
            print("batch", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent_and_say_nothing(number: int) -> None:
    """One of the three hangs. Ctrl-C goes to the whole group, the other signal to the parent alone."""
    command, pipe = [sys.executable, "-c", textwrap.dedent(PARENT)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "batch\n"
        assert parent.stdout.readline() == "batch\n"
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
        # The pipes end when no process is left that holds them: what is awaited here are the workers.
        out, errors = parent.communicate(timeout=20)
    assert (out, errors) == ("interrupted\n" if number == signal.SIGINT else "", "")
