"""`opsin synthesize` as a person runs it: options, exit codes, what is printed, batch files, prompts to edit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from opsin.cli import app
from opsin.commands.synthesize import time_left
from opsin.synthesize.engine import Facts
from opsin.synthesize.request import Usage
from tests.support.chat_endpoint import ChatEndpoint
from tests.support.teaching import batch_line, recipe_text, well, write_collection

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection"))


def run(*words: object) -> Result:
    return RUNNER.invoke(app, ["synthesize", *map(str, words)])


def test_a_packaged_recipe_by_rules(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(collection))
    done = run("offline", "held_out=0", "--out", tmp_path / "out", "--estimate")
    assert "to make of 12 pictures\nrequests  none: rules make all of them, at no cost" in done.output
    done = run("offline", "held_out=0", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert f"samples  {tmp_path / 'out' / 'instruct.json'}" in done.output
    assert f"image_root: {collection / 'images'}" in done.output
    assert len(json.loads((tmp_path / "out" / "instruct.json").read_text())) > 12
    page = (tmp_path / "out" / "page.html").read_text()
    assert "000000000001" in page
    shown = RUNNER.invoke(app, ["inspect", str(tmp_path / "out"), "--samples", "2"])
    assert shown.exit_code == 0, shown.output
    assert "tasks " in shown.output
    assert "#conversation" in shown.output
    shown = RUNNER.invoke(app, ["inspect", str(tmp_path / "out"), "--id", "000000000001#conversation"])
    assert shown.output.lstrip().startswith("000000000001#conversation")


def test_the_recipe_for_coco_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO", str(tmp_path))
    done = run("llava-instruct", "teacher.modle=x")
    assert done.exit_code == 2
    assert "captions_train2017.json" in done.output
    assert "did you mean 'model'?" in done.output


def test_a_budget_in_money_needs_a_price_and_ends_with_3(collection: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with ChatEndpoint(well) as endpoint:
        path.write_text(recipe_text(collection, endpoint.url))
        done = run(path, "--max-cost", "1", "--out", tmp_path / "out")
        assert done.exit_code == 2
        assert "price" in done.output
        price = "teacher.price={input: 1, output: 1}"
        done = run(path, price, "--max-requests", "0", "--out", tmp_path / "out")
        assert "train " not in done.output
        done = run(path, price, "--max-requests", "5", "--out", tmp_path / "out")
        assert done.exit_code == 3, done.output
        assert "raise it to go on from here" in done.output
        assert "train    data: [{kind: llava, path: " in done.output
        assert "the recipe has changed" not in done.output
        done = run(path, price, "--json", "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["states"] == {"made": 36}
        assert len(endpoint.asked) == 36


def test_an_estimate_says_what_it_would_take(collection: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(collection, "http://127.0.0.1:9/v1"))
    done = run(path, "--estimate", "teacher.price={input: 1, output: 2}", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "samples   36 to make of 12 pictures\nrequests  36 to ask, 0 have answers" in done.output
    assert "USD" in done.output
    done = run(path, "--estimate", "--json", "--out", tmp_path / "out")
    assert json.loads(done.stdout)["requests"] == 36


def test_a_job_by_batch_files_takes_rounds_until_all_is_made(collection: Path, tmp_path: Path) -> None:
    path, out, batch = tmp_path / "recipe.yaml", tmp_path / "out", tmp_path / "batch"
    path.write_text(recipe_text(collection, "http://127.0.0.1:9/v1"))
    done = run(path, "--out", out, "--export-batch", batch)
    assert done.exit_code == 3, done.output
    for again in ([], ["--export-batch", batch]):
        done = run(path, "--out", out, *again)
        assert done.exit_code == 2
        assert "would pay for them twice" in " ".join(done.output.split())
    for round_ in range(2):
        (file,) = batch.glob("*.jsonl")
        asked = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(asked) == (36, 4)[round_]
        answers = tmp_path / f"answers-{round_}.jsonl"
        answered = [batch_line(one, "no blocks here" if not round_ and n < 4 else None) for n, one in enumerate(asked)]
        answers.write_text("".join(answered[2:]))
        done = run(path, "--out", out, "--import-batch", answers)
        assert done.exit_code == 3
        assert "2 requests" in " ".join(run(path, "--out", out).output.split())  # are still out
        answers.write_text("".join(answered))
        done = run(path, "--out", out, "--import-batch", answers, "--export-batch", batch)
    assert done.exit_code == 0, done.output
    assert len(json.loads((out / "instruct.json").read_text())) == 36
    done = run(path, "--out", out, "--import-batch", answers)
    assert "0 answers taken, 4 were here" in done.output


def test_prompts_are_copied_edited_and_told_by_their_version(collection: Path, tmp_path: Path) -> None:
    copied = RUNNER.invoke(app, ["prompts", "copy", str(tmp_path / "mine")])
    assert copied.exit_code == 0, copied.output
    system = tmp_path / "mine" / "detail" / "system.txt"
    system.write_text(system.read_text() + "\nWrite as if on a postcard.\n")
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    with ChatEndpoint(well) as endpoint:
        kinds = [{"kind": "detail", "prompt": "mine/detail"}]
        path.write_text(recipe_text(collection, endpoint.url, kinds=kinds))
        assert run(path, "--out", out).exit_code == 0
        assert "postcard" in endpoint.asked[0].body["messages"][0]["content"]
        edited = json.loads((out / "provenance.jsonl").read_text().splitlines()[0])["prompt"]
        path.write_text(recipe_text(collection, endpoint.url, kinds=[{"kind": "detail"}]))
        assert run(path, "--out", out).exit_code == 0
        assert len(endpoint.asked) == 24  # another prompt is another question
    assert json.loads((out / "provenance.jsonl").read_text().splitlines()[0])["prompt"] != edited


def test_a_kind_that_must_see_is_refused_for_a_teacher_that_cannot(collection: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(collection, "http://127.0.0.1:9/v1", kinds=[{"kind": "recaption"}]))
    done = run(path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "vision: true" in done.output
    path.write_text(recipe_text(collection, kinds=[{"kind": "recaption"}, {"kind": "detail"}, {"kind": "detail"}]))
    done = run(path, "--out", tmp_path / "out")
    assert "kinds.0: recaption cannot be made by rules" in done.output
    assert "2 entries would be called 'detail'" in done.output


def test_help_and_recipe_errors_load_neither_torch_nor_a_client(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\n")
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom opsin.cli import app\n"
        f"print(CliRunner().invoke(app, ['synthesize', r'{tmp_path / 'bad.yaml'}']).exit_code)\n"
        "print({'torch', 'openai', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["2", "set()"]


def test_the_time_left_is_that_of_the_answers_that_tasks_take() -> None:
    facts = Facts(
        sent=31,
        answered=30,
        from_ledger=10,
        failed=0,
        in_flight=1,
        waiting=0,
        paused_for=0.0,
        per_second=2.0,
        used=Usage(0, 0),
        spent=Usage(0, 0),
        problem="",
    )
    assert time_left(20, 120, facts) == ", about 1 min 40 s left"  # 100 tasks of two answers, each in half a second
    assert time_left(20, 120, replace(facts, per_second=0.0)) == ""


def test_an_export_stays_within_the_budget(collection: Path, tmp_path: Path) -> None:
    path, batch = tmp_path / "recipe.yaml", tmp_path / "batch"
    path.write_text(recipe_text(collection, "http://127.0.0.1:9/v1"))
    done = run(path, "--out", tmp_path / "out", "--export-batch", batch, "--max-requests", "7")
    assert (
        "7 requests exported: upload the files, and take the answers with --import-batch; 29 more are over the budget"
        in done.output
    )
    assert sum(len(file.read_text().splitlines()) for file in batch.iterdir()) == 7
    price = "teacher.price={input: 1, output: 1}"
    done = run(path, price, "--out", tmp_path / "other", "--export-batch", tmp_path / "none", "--max-cost", "0")
    assert "at most 0.0000 USD; 36 more are over the budget" in done.output
    assert list((tmp_path / "none").iterdir()) == []
