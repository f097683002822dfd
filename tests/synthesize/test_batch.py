from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from opsin.core.errors import OpsinError
from opsin.synthesize import batch
from opsin.synthesize.batch import export_batch, import_batch
from opsin.synthesize.estimate import most_of
from opsin.synthesize.exported import Affordable, Exported
from opsin.synthesize.ledger import Ledger
from opsin.synthesize.request import Answer, Usage
from opsin.synthesize.teacher_values import Limits, OpenAI, Price
from tests.support.asking import request
from tests.support.chat_endpoint import completion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opsin.synthesize.request import Request

TEACHER = OpenAI(model="tiny", price=Price(input=1_000_000, output=1_000_000, batch_discount=0.4))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def line(number: int, status: int = 200, body: Any = None) -> str:
    body = json.loads(completion(f"answer {number}")) if body is None else body
    return json.dumps({"id": "x", "custom_id": request(number).key, "response": {"status_code": status, "body": body}})


def is_asked(key: str) -> Usage | None:
    return Usage(100, 50) if key in {request(number).key for number in range(20)} else None


def written(requests: list[Request], folder: Path, ledger: Ledger) -> list[Path]:
    noted: list[Path] = []
    files = export_batch(requests, folder / "batch", TEACHER, ledger, noted.extend)
    assert noted == files
    return files


def test_what_is_not_in_the_ledger_is_exported_once(tmp_path: Path, ledger: Ledger) -> None:
    ledger.keep_all([(request(1).key, Answer("yes", "stop", Usage(1, 1), "tiny"))])
    requests = [request(0), request(1), request(2), request(0)]
    [path] = written(requests, tmp_path, ledger)
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    assert [one["custom_id"] for one in lines] == [request(0).key, request(2).key]
    assert (lines[0]["method"], lines[0]["url"]) == ("POST", "/v1/chat/completions")
    assert lines[0]["body"]["messages"] == [{"role": "user", "content": "picture 0"}]
    assert ledger.totals.requests == 1  # that one, before


def test_files_are_split_and_earlier_ones_replaced(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_LINES", 3)
    requests = [request(number) for number in range(7)]
    files = written(requests, tmp_path, ledger)
    assert [path.name for path in files] == ["batch-001.jsonl", "batch-002.jsonl", "batch-003.jsonl"]
    assert [len(path.read_bytes().splitlines()) for path in files] == [3, 3, 1]
    size = files[2].stat().st_size
    monkeypatch.setattr(batch, "MOST_BYTES", 2 * size)
    assert len(written(requests, tmp_path, ledger)) == 4
    assert len(written(requests[:1], tmp_path, ledger)) == 1
    assert [path.name for path in (tmp_path / "batch").iterdir()] == ["batch-001.jsonl"]
    monkeypatch.setattr(batch, "MOST_BYTES", size - 1)
    with pytest.raises(OpsinError, match=r"more than a batch file may hold"):
        written(requests, tmp_path, ledger)


def test_files_are_there_only_when_it_is_noted_that_they_are_out(tmp_path: Path, ledger: Ledger) -> None:
    """A process that is killed between the two leaves no file that can be uploaded and that nobody knows of."""

    def note(files: list[Path]) -> None:
        assert [path.name for path in files] == ["batch-001.jsonl"]
        assert not files[0].exists()
        raise OpsinError("the disk is full")

    with pytest.raises(OpsinError, match="the disk is full"):
        export_batch([request(0)], tmp_path / "batch", TEACHER, ledger, note)
    assert list((tmp_path / "batch").iterdir()) == []


def test_files_that_cannot_be_written_are_not_noted(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Path] = []

    def full(path: Path) -> None:
        if "002" in path.name:
            raise OSError(28, "no space left")

    monkeypatch.setattr(batch, "MOST_LINES", 3)
    monkeypatch.setattr(batch, "fsync_file", full)
    with pytest.raises(OSError, match="no space"):
        export_batch([request(number) for number in range(7)], tmp_path / "batch", TEACHER, ledger, noted.extend)
    assert noted == []
    assert list((tmp_path / "batch").iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / ".batch-007.jsonl.partial").write_bytes(b"half")
    written([request(0)], tmp_path, ledger)
    assert [path.name for path in (tmp_path / "batch").iterdir()] == ["batch-001.jsonl"]


def test_what_is_out_is_known_by_its_keys_however_often_a_file_is_imported(tmp_path: Path, ledger: Ledger) -> None:
    """Foreign lines, and lines that came before, settle nothing: else what is still out would be asked again."""
    keys = [request(number).key for number in range(4)]
    exported = Exported(tmp_path)
    exported.note([tmp_path / "batch-001.jsonl"], keys)
    path = tmp_path / "output.jsonl"
    foreign = [json.dumps({"custom_id": f"foreign {number}", "response": None}) for number in range(9)]
    path.write_text("\n".join([line(0), line(1, 500, {}), "{", *foreign]) + "\n", encoding="utf-8")
    for _ in range(3):
        exported.settle(import_batch([path], ledger, TEACHER, is_asked).came)
        with pytest.raises(OpsinError, match=rf"2 requests of .*batch-001\.jsonl are out .*\(?first {keys[2]}"):
            exported.refuse()
    path.write_text(line(2) + "\n" + line(3) + "\n", encoding="utf-8")
    exported.settle(import_batch([path], ledger, TEACHER, is_asked).came)
    exported.refuse()


def test_the_file_that_was_uploaded_is_no_file_of_answers(tmp_path: Path, ledger: Ledger) -> None:
    files = written([request(0)], tmp_path, ledger)
    with pytest.raises(OpsinError, match=r"batch-001\.jsonl:1: a request: this is a file to upload"):
        import_batch(files, ledger, TEACHER, is_asked)


def test_answers_are_imported_once_at_the_price_of_a_batch(tmp_path: Path, ledger: Ledger) -> None:
    path = tmp_path / "output.jsonl"
    path.write_text("\n".join([line(0), line(1), line(0)]) + "\n", encoding="utf-8")
    imported = import_batch([path], ledger, TEACHER, is_asked)
    assert (imported.kept, imported.known, imported.problems) == (2, 1, [])
    found = ledger.lookup(request(1).key)
    assert found is not None
    assert (found.text, found.usage) == ("answer 1", Usage(10, 5, 15 * 0.6))
    again = import_batch([path, path], ledger, TEACHER, is_asked)
    assert (again.kept, again.known) == (0, 6)
    assert ledger.totals.spent.cost == pytest.approx(2 * 15 * 0.6)


def test_no_more_goes_out_than_is_left_of_the_budgets(ledger: Ledger) -> None:
    ledger.keep_all((request(number).key, Answer("yes", "stop", Usage(1, 1, 30.0), "tiny")) for number in range(3))
    pending = [request(number) for number in range(10, 20)]
    most = most_of(pending[0], TEACHER).tokens * 0.6  # of a unit for each token, at the price of a batch

    def exported(requests: list[Request], **limits: float) -> int:
        affordable = Affordable(requests, TEACHER, Limits.model_validate(limits), ledger.totals)
        return len(list(affordable))

    assert exported(pending, max_requests=5) == 2
    assert exported(pending, max_cost=90 + 4 * most + 1) == 4
    large = request(30, max_tokens=10_000)
    assert exported([pending[0], large, *pending[1:]], max_cost=90 + 4 * most + 1) == 1  # in order


def test_what_a_filter_refuses_is_a_refusal(tmp_path: Path, ledger: Ledger) -> None:
    """It would be refused in every further round, too."""
    error = {"code": "content_filter", "message": "flagged"}
    path = tmp_path / "errors.jsonl"
    path.write_text(
        "\n".join(
            [
                line(0, 400, {"error": error}),
                json.dumps({"custom_id": request(1).key, "response": None, "error": error}),
            ]
        ),
        encoding="utf-8",
    )
    assert import_batch([path], ledger, TEACHER, is_asked).kept == 2
    for number in range(2):
        found = ledger.lookup(request(number).key)
        assert found is not None
        assert (found.text, found.finish) == ("content_filter: flagged", "refusal")


def test_all_other_lines_are_named(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LINE_BYTES", 1000)
    lines = {
        line(0): None,
        "{cut": "not JSON; was the download cut off?",
        "[1, 2]": "not a line of a batch's output: no custom_id",
        "x" * 5000: "longer than 1,000 bytes",
        line(99): f"an answer to '{request(99).key[:40]}', which this recipe does not ask",
        line(3, 429, {"error": {"message": "slow\x1b[2J down"}}): "no answer (status 429: ",
        json.dumps(
            {"custom_id": request(4).key, "response": None, "error": {"code": "batch_expired"}}
        ): "batch_expired",
        line(5, body={"choices": []}): "answered with no choice",
        line(6, body={"choices": "none"}): "no answer (status 200: ",
        "[" * 900: "not JSON",
        line(7): None,
    }
    path = tmp_path / "output.jsonl"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    imported = import_batch([path], ledger, TEACHER, is_asked)
    assert imported.kept == 2
    expected = [(2 * number + 1, problem) for number, problem in enumerate(lines.values()) if problem]
    assert len(imported.problems) == len(expected)
    for told, (number, problem) in zip(imported.problems, expected, strict=True):
        assert told.startswith(f"{path}:{number}: ")
        assert problem in told
        assert told.isprintable()


def test_a_file_that_is_not_there(tmp_path: Path, ledger: Ledger) -> None:
    with pytest.raises(OpsinError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        import_batch([tmp_path / "none.jsonl"], ledger, TEACHER, is_asked)
