"""The mixture of all modalities: true by construction, in every format, and through check, plan and training."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import ImageChops

from opsin.core.errors import AssetError
from opsin.core.types import Clip, Picture
from opsin.data.check import check, source_of
from opsin.data.sources import MessagesFile, ParquetFile, TarShards
from opsin.quickstart import mixture
from opsin.quickstart.mixture import SHOWN, write_recipe
from opsin.synthesize.rules import YES_NO
from opsin.train.hooks import Hooks
from opsin.train.recipe import load_recipe
from opsin.train.run import start
from opsin.vision.picture import open_picture
from tests.support.mixture import SIZE, tiny_recipe, write_tiny_mixture

if TYPE_CHECKING:
    from opsin.core.types import Conversation
    from opsin.data.sources import Source

FILES = (
    "captions.json",
    "shapes.jsonl",
    "scenes-0.tar",
    "scenes-1.tar",
    "pairs.parquet",
    "videos.jsonl",
    "texts.jsonl",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mixture(tmp_path_factory.mktemp("mixture"))


def conversations(source: Source) -> list[Conversation]:
    return list(source.conversations(Counter()))


def test_nothing_is_wrong_with_any_file(data: Path) -> None:
    checked = {name: check(source_of(data / name), decode=True) for name in FILES}
    assert {name: found.problems + found.notes for name, found in checked.items()} == dict.fromkeys(FILES, ())
    counts = [checked[name].counts["conversations"] for name in FILES]
    half = SIZE.scenes // 2
    assert counts == [SIZE.captions + 3, SIZE.shapes, half, half, SIZE.pairs, 4 * len(SHOWN), SIZE.texts]


def test_the_same_seed_writes_the_same_bytes(data: Path, tmp_path: Path) -> None:
    again = write_tiny_mixture(tmp_path)
    assert {name: (again / name).read_bytes() for name in FILES} == {name: (data / name).read_bytes() for name in FILES}


def test_the_answer_about_a_pair_is_the_picture_that_shows_it(data: Path) -> None:
    """A drawn shape is told from its pixels alone, by how much of its own box it fills."""
    filled = {"triangle": (0.45, 0.6), "star": (0.3, 0.45), "circle": (0.7, 0.85), "square": (0.95, 1.01)}
    for conversation in conversations(ParquetFile(path=data / "pairs.parquet")):
        question = "".join(part for part in conversation.turns[0].parts if isinstance(part, str))
        low, high = filled[question.removeprefix("Which is a ").split(",")[0]]
        fits = [low <= _filled(picture) < high for picture in conversation.media if isinstance(picture, Picture)]
        assert sum(fits) == 1
        assert conversation.turns[1].parts == ("The first." if fits[0] else "The second.",)


def _filled(picture: Picture) -> float:
    bands = open_picture(picture).split()
    shape = reduce(ImageChops.darker, bands).point(lambda value: 255 * (value < 200))
    inside = shape.crop(shape.getbbox())
    return inside.histogram()[255] / (inside.width * inside.height)


def test_what_is_said_of_a_video_is_what_its_file_says(data: Path) -> None:
    said = {c.id: (c.media, c.turns[1].parts[0]) for c in conversations(source_of(data / "videos.jsonl"))}
    for seconds, name in enumerate(SHOWN, start=1):
        assert [said[f"{name}.{key}"][1] for key in ("shows", "length", "wider", "higher")] == [
            SHOWN[name],
            str(seconds),
            YES_NO[True],
            YES_NO[False],
        ]
        assert said[f"{name}.length"][0] == (Clip(path=data / "videos" / f"{name}.mp4"),)


def test_things_are_called_by_their_group_without_a_picture(data: Path) -> None:
    texts = conversations(MessagesFile(path=data / "texts.jsonl"))
    for conversation in texts:
        for question, answer in zip(conversation.turns[::2], conversation.turns[1::2], strict=True):
            noun = str(question.parts[0]).split(" ")[3]  # Is a red circle ...
            assert answer.parts == (f"A {noun}.",)
    assert len(texts[-1].turns) == 2 * SIZE.quiz


def test_scenes_lie_in_shards(data: Path) -> None:
    scenes = conversations(TarShards.model_validate({"path": str(data / "scenes-*.tar")}))
    assert sorted(scene.id for scene in scenes) == [f"scene.{index}" for index in range(SIZE.scenes)]
    assert all(scene.media[0].member is not None for scene in scenes)  # type: ignore[union-attr]


def test_a_folder_with_something_in_it_is_refused(data: Path) -> None:
    with pytest.raises(AssetError, match="is not empty: remove it, or choose another folder"):
        mixture.Mixture((), mixture.Vocabulary(()), data).write(data, data)


def test_a_video_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"lacks the videos bigbuckbunny, bikes, carphone_pristine"):
        mixture.Mixture((), mixture.Vocabulary(()), tmp_path / "data").write(tmp_path, tmp_path)


def test_the_recipe_names_the_backbones_however_they_are_called(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" \\ name'
    folder.mkdir()
    write_recipe(tmp_path / "recipe.yaml", folder, folder)
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "${" not in text.replace("${NAME}", "")
    assert text.count(json.dumps(str(folder))) == 2


def test_all_modalities_are_trained_on(data: Path, tmp_path: Path) -> None:
    write_tiny_mixture(tmp_path)
    lines: list[str] = []
    start(load_recipe(tiny_recipe(tmp_path)), tmp_path / "run", Hooks(on_line=lines.append))
    shortened = (tmp_path / "run" / "shortened.txt").read_text(encoding="utf-8")
    assert "(text.4)" in shortened
    assert "exchanges kept" in shortened
    assert "stage 'align': 3 samples left out: not of the stage's kinds" in lines
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {step["stage"] for step in steps} == {"align", "instruct"}


@pytest.mark.network
@pytest.mark.timeout(1800)
def test_make_mixture(tmp_path: Path) -> None:
    made = subprocess.run(
        ["make", "mixture", f"OUT={tmp_path / 'mixture'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("no problems") == 7
    assert (tmp_path / "mixture" / "page.html").stat().st_size > 100_000
    assert "checkpoint" in made.stdout
