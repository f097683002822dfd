from __future__ import annotations

import json
import random
import re
import zipfile
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from opsin.core.errors import AssetError
from opsin.core.files import sha256_file
from opsin.quickstart.captions import caption_key
from opsin.quickstart.dataset import TINY, Dataset, DatasetSize, build, build_drawn, build_easy_vqa
from opsin.quickstart.split import families, quotas, split, stem_key
from opsin.quickstart.stamps import read_stamps
from opsin.synthesize import rules
from tests.support.easy_vqa import easy_vqa_wheel

if TYPE_CHECKING:
    from pathlib import Path

SIZE = DatasetSize(held_out=12, views=2, scenes=20, counting=8, detail=6, reasoning=8, side=72)


@pytest.fixture
def dataset(stamps_dir: Path, tmp_path: Path) -> Dataset:
    return build(stamps_dir, tmp_path / "data", 3, SIZE)


def load(path: Path) -> list[dict[str, Any]]:
    records = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(records, list)
    return records


def digest(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def training_records(dataset: Dataset) -> list[dict[str, Any]]:
    return [record for path in (dataset.align, *dataset.instruct) for record in load(path)]


def test_records_are_llava_json(dataset: Dataset) -> None:
    records = training_records(dataset)
    assert records
    for record in records:
        assert set(record) == {"id", "image", "conversations"}
        assert (dataset.images / record["image"]).is_file()
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [("<image>" in turn["value"]) for turn in turns] == [True] + [False] * (len(turns) - 1)
        assert turns[0]["value"].startswith("<image>\n")
        assert all(turn["value"].strip() for turn in turns)
    for path in (dataset.align, *dataset.instruct, dataset.held_out):
        ids = [record["id"] for record in load(path)]
        assert len(set(ids)) == len(ids)


def test_statistics_agree_with_the_files(dataset: Dataset) -> None:
    statistics = json.loads((dataset.folder / "statistics.json").read_text(encoding="utf-8"))
    assert statistics == dataset.statistics
    assert statistics["align"]["records"] == len(load(dataset.align))
    assert sum(statistics["instruct"]["kinds"].values()) == sum(len(load(path)) for path in dataset.instruct)
    assert set(statistics["instruct"]["kinds"]) == {"conversation", "detail", "reasoning"}
    assert statistics["heldout"] == Counter(record["task"] for record in load(dataset.held_out))
    assert statistics["pictures"] == len(list(dataset.images.iterdir()))


def test_no_held_out_text_file_or_picture_is_in_training(dataset: Dataset) -> None:
    questions = load(dataset.held_out)
    records = training_records(dataset)
    held_images = {question["image"] for question in questions}
    train_images = {record["image"] for record in records}
    assert not held_images & train_images
    hashes = {sha256_file(dataset.images / image) for image in train_images}
    assert not hashes & {sha256_file(dataset.images / image) for image in held_images}
    spoken = [f" {caption_key(turn['value'])} " for record in records for turn in record["conversations"]]
    for question in questions:
        if question["task"] == "caption":
            assert not any(f" {caption_key(question['answer'])} " in text for text in spoken), question
    stems = {stem_key(record["id"].split("#")[0].rsplit(".", 1)[0]) for record in load(dataset.align)}
    assert not stems & {stem_key(q["id"].split("#")[0]) for q in questions if q["task"] == "caption"}


def test_variants_are_one_family_and_are_not_held_out(stamps_dir: Path) -> None:
    stamps = read_stamps(stamps_dir).stamps
    related = next(family for family in families(stamps) if len(family) > 1)
    assert {stamp.id.rsplit("/", 1)[-1] for stamp in related} == {"crow", "crow_mirror", "crow-2"}
    parts = split(stamps, 12, random.Random(0))
    assert not {stamp.id for stamp in related} & {stamp.id for stamp in parts.held_out}
    assert {stamp.group for stamp in parts.held_out} == {stamp.group for stamp in stamps}
    assert {stamp.group for stamp in parts.train} == {stamp.group for stamp in stamps}
    assert len(parts.train) + len(parts.held_out) == len(stamps)


def test_a_caption_contained_in_another_is_not_held_out(stamps_dir: Path) -> None:
    (stamps_dir / "plants/tulip.txt").write_text("A wild rose.\n", encoding="utf-8")
    stamps = read_stamps(stamps_dir).stamps
    for seed in range(20):
        assert "plants/rose" not in {stamp.id for stamp in split(stamps, 12, random.Random(seed)).held_out}


def test_a_split_that_leaves_nothing_is_refused(stamps_dir: Path) -> None:
    stamps = read_stamps(stamps_dir).stamps
    with pytest.raises(AssetError, match=f"cannot hold out {len(stamps)} of {len(stamps)} stamps"):
        split(stamps, len(stamps), random.Random(0))
    twins = [stamp for stamp in stamps if "crow" in stamp.id]
    with pytest.raises(AssetError, match="every one of the 3 stamps has a twin"):
        split(twins, 1, random.Random(0))


def test_quotas_are_proportional_and_sum_up() -> None:
    assert quotas({"a": 60, "b": 30, "c": 10}, 10) == {"a": 6, "b": 3, "c": 1}
    assert quotas({"a": 50, "b": 2, "c": 1}, 10) == {"a": 9, "b": 1, "c": 0}


@pytest.mark.parametrize("stem", ["Candy_cane_photo_2", "candy-cane", "candycane_mirror", "candyCane-b"])
def test_variants_of_a_file_name_share_a_key(stem: str) -> None:
    assert stem_key(f"seasonal/{stem}") == "candycane"


def test_yes_no_questions_say_nothing_by_themselves(dataset: Dataset) -> None:
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    group_of = {q["image"]: q["answer"] for q in load(dataset.held_out) if q["task"] == "category"}
    for question in load(dataset.held_out):
        if question["task"] == "yes_no":
            by_text[question["question"]][question["answer"]] += 1
            asked = re.fullmatch(r"Is this in the group (.+)\?", question["question"])
            assert asked is not None
            assert (group_of[question["image"]] == asked.group(1)) == (question["answer"] == "Yes")
    assert len(by_text) >= 4
    assert all(counts["Yes"] == counts["No"] for counts in by_text.values())


def test_evaluation_questions_are_trained_questions(dataset: Dataset) -> None:
    asked = {turn["value"].removeprefix("<image>\n") for r in training_records(dataset) for turn in r["conversations"]}
    for question in load(dataset.held_out):
        if question["task"] in ("category", "caption"):
            assert question["question"] in asked
    assert rules.TOTAL_QUESTION in asked
    category = next(question for question in load(dataset.held_out) if question["task"] == "category")
    assert category["answer"] in category["choices"]
    assert len(category["choices"]) == 15


def test_counting_questions_cover_the_counts_evenly(dataset: Dataset) -> None:
    counts = [question for question in load(dataset.held_out) if question["task"] == "count"]
    totals = Counter(q["answer"] for q in counts if q["question"] == rules.TOTAL_QUESTION)
    assert len(counts) == SIZE.counting
    assert max(totals.values()) == 1


def test_same_seed_same_bytes_other_seed_other_split(stamps_dir: Path, tmp_path: Path) -> None:
    first, second, other = (
        digest(build(stamps_dir, tmp_path / name, seed, SIZE).folder) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == second
    assert first["heldout.json"] != other["heldout.json"]


def test_more_views_more_pictures_same_held_out(stamps_dir: Path, tmp_path: Path, dataset: Dataset) -> None:
    size = DatasetSize(held_out=12, views=3, scenes=20, counting=8, detail=6, reasoning=8, side=72)
    wider = build(stamps_dir, tmp_path / "wider", 3, size)
    assert len(load(wider.align)) * 2 == len(load(dataset.align)) * 3
    assert load(wider.held_out) == load(dataset.held_out)


def test_a_folder_that_holds_something_is_refused(stamps_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old.txt").write_text("old")
    with pytest.raises(AssetError, match="is not empty"):
        build(stamps_dir, tmp_path / "data", 3, SIZE)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="views is 0; it must be at least 1"):
        DatasetSize(views=0)


def test_drawn_data_has_all_tasks(tmp_path: Path) -> None:
    dataset = build_drawn(tmp_path / "drawn", 0)
    assert set(dataset.statistics["heldout"]) == {"category", "yes_no", "count", "caption"}
    assert dataset.statistics["heldout"]["category"] == TINY.held_out
    with Image.open(dataset.images / load(dataset.align)[0]["image"]) as image:
        assert image.size == (64, 64)
    train = {record["conversations"][1]["value"] for record in load(dataset.align)}
    held = {question["answer"] for question in load(dataset.held_out) if question["task"] == "caption"}
    assert not train & held


def test_easy_vqa_keeps_the_official_split_and_balances(tmp_path: Path) -> None:
    wheel = easy_vqa_wheel(tmp_path / "easy.whl")
    size = DatasetSize(held_out=9, scenes=8)
    dataset = build_easy_vqa(wheel, tmp_path / "data", 0, size)
    assert len(load(dataset.align)) == 8
    assert all(record["image"].startswith("train_") for record in training_records(dataset))
    questions = load(dataset.held_out)
    assert all(question["image"].startswith("test_") for question in questions)
    assert {question["task"] for question in questions} == {"category", "caption", "yes_no"}
    answers = Counter(
        (question["question"], question["answer"]) for question in questions if question["task"] == "yes_no"
    )
    assert all(answers[text, "Yes"] == answers[text, "No"] for text, _ in answers)
    assert dataset.statistics["skipped"][0]["reason"].startswith("1 pictures")
    labels = {record["image"]: record["conversations"][1]["value"] for record in load(dataset.align)}
    assert dataset.statistics["labels"].keys() == labels.keys()
    assert all(labels[image].endswith(f" {shape}.") for image, shape in dataset.statistics["labels"].items())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    again = build_easy_vqa(tmp_path / "unpacked", tmp_path / "again", 0, size)
    assert digest(again.folder) == digest(dataset.folder)


def test_a_file_that_is_not_easy_vqa_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"no zip")
    with pytest.raises(AssetError, match=r"other\.whl: not the data of easy-vqa"):
        build_easy_vqa(tmp_path / "other.whl", tmp_path / "data", 0, SIZE)
