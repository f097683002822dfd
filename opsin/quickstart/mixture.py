"""A small mixture of all modalities, in four formats: what every record says is true by construction.

    python -m opsin.quickstart.mixture OUT

fetches pictures, videos and backbones, and writes OUT/data and OUT/recipe.yaml, ready for `opsin data check`, `plan`,
`inspect` and `train`. The same pictures, seed and size give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from opsin.core.errors import AssetError, MissingExtraError, OpsinError
from opsin.core.files import write_json, write_text
from opsin.quickstart.assets import fetch_all, fetch_easy_vqa, fetch_videos
from opsin.quickstart.captions import names_one_thing
from opsin.quickstart.drawn import DRAWN_GROUPS, draw_stamps
from opsin.quickstart.easy_vqa import sample_drawings
from opsin.quickstart.groups import CLOSE, GROUPS
from opsin.quickstart.records import file_stem
from opsin.quickstart.scenes import compose, most_members, plan_scene
from opsin.quickstart.stamps import Stamp, read_stamps, view
from opsin.synthesize.context import Vocabulary
from opsin.synthesize.english import sentence
from opsin.synthesize.rules import BRIEF_INSTRUCTIONS, YES_NO, counting
from opsin.synthesize.subject import Exchange
from opsin.vision.video import video_facts

SEED = 0
SHARDS = 2
TURNS = 3
"""Questions of a conversation without a picture."""

SHOWN = {
    "bigbuckbunny": "A big grey rabbit comes out of its burrow and stretches.",
    "bikes": "Cars and parked bicycles in a city street.",
    "carphone_pristine": "A man with a red bow tie talks in a car.",
}
"""What the videos show: somebody looked at them."""


@dataclass(frozen=True, slots=True)
class MixtureSize:
    """How many records of each kind. The last of `texts` is a quiz of `quiz` questions, too long for a small pack."""

    captions: int = 240
    shapes: int = 60
    scenes: int = 36
    pairs: int = 48
    texts: int = 60
    quiz: int = 40
    side: int = 224
    """Width and height of a picture of one thing; a scene is twice as wide and high."""


@dataclass(frozen=True)
class Mixture:
    """What the records are about, and the folder that they are written to, one method a file."""

    stamps: Sequence[Stamp]
    vocabulary: Vocabulary
    folder: Path
    size: MixtureSize = MixtureSize()

    def write(self, shapes: Path, videos: Path) -> None:
        """Everything, of the folder (or wheel) of Easy-VQA and the folder of the videos that `SHOWN` names.

        Raises:
            AssetError: the mixture's folder is not empty, or shapes or videos are not what they should be.
            OpsinError: a video cannot be read, or an extra is missing.
        """
        if self.folder.exists() and any(self.folder.iterdir()):
            raise AssetError(f"{self.folder} is not empty: remove it, or choose another folder")
        for name in ("stamps", "shapes", "videos"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        clips = self._copied(videos)
        self._captions(clips)
        self._shapes(shapes)
        self._scenes()
        self._pairs()
        self._videos(clips)
        self._texts()

    def _copied(self, videos: Path) -> dict[str, str]:
        """The videos and their places in the mixture's folder."""
        if missing := [name for name in SHOWN if not (videos / f"{name}.mp4").is_file()]:
            raise AssetError(f"{videos}: lacks the videos {', '.join(missing)}")
        for name in SHOWN:
            shutil.copyfile(videos / f"{name}.mp4", self.folder / "videos" / f"{name}.mp4")
        return {name: f"videos/{name}.mp4" for name in SHOWN}

    def _captions(self, clips: dict[str, str]) -> None:
        """LLaVA JSON: a stamp, or a video, and its caption."""
        rng = random.Random(f"{SEED}/captions")
        records = []
        for stamp in _some(self.stamps, self.size.captions, rng):
            image = f"stamps/{file_stem(stamp.id)}.jpg"
            (self.folder / image).write_bytes(_jpeg(view(stamp, 0, self.size.side, rng).image))
            asked = Exchange(rng.choice(BRIEF_INSTRUCTIONS), stamp.caption)
            records.append({"id": stamp.id, "image": image, "conversations": _llava([asked], "<image>\n")})
        for name, clip in clips.items():
            asked = Exchange(rng.choice(BRIEF_INSTRUCTIONS), SHOWN[name])
            records.append({"id": name, "video": clip, "conversations": _llava([asked], "<video>\n")})
        write_json(self.folder / "captions.json", records)

    def _shapes(self, source: Path) -> None:
        """Messages: a drawing of Easy-VQA and all of its official questions."""
        rng = random.Random(f"{SEED}/shapes")
        records = []
        for drawing, png in sample_drawings(source, self.size.shapes, rng):
            image = f"shapes/{drawing.index}.png"
            (self.folder / image).write_bytes(png)
            questions = rng.sample(drawing.questions, len(drawing.questions))
            records.append({"id": f"shape.{drawing.index}", "messages": _messages(questions, image)})
        _write_lines(self.folder / "shapes.jsonl", records)

    def _scenes(self) -> None:
        """Tar shards: a large picture of several things, and questions that count them."""
        rng = random.Random(f"{SEED}/scenes")
        most = most_members(self.stamps, self.vocabulary)
        for shard in range(SHARDS):
            with tarfile.open(self.folder / f"scenes-{shard}.tar", "w") as tar:
                for index in range(shard, self.size.scenes, SHARDS):
                    plan = plan_scene(index, most, rng)
                    scene = compose(plan, self.stamps, self.vocabulary, 2 * self.size.side, rng)
                    turns = _llava(counting(scene.context, self.vocabulary, rng), "<image>\n")
                    record = {"id": f"scene.{index}", "conversations": turns}
                    _add(tar, f"{index:06d}.jpg", _jpeg(scene.image))
                    _add(tar, f"{index:06d}.json", json.dumps(record).encode())

    def _pairs(self) -> None:
        """Parquet, pictures as bytes: which of two things belongs to a group."""
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ModuleNotFoundError:
            raise MissingExtraError("pyarrow", "data") from None
        rng = random.Random(f"{SEED}/pairs")
        rows = []
        for index, (stamp, one, other, _) in enumerate(self._contrasts(self.size.pairs, rng)):
            first = rng.random() < 0.5
            shown = (stamp, other) if first else (other, stamp)
            pictures = [{"bytes": _jpeg(view(s, 0, self.size.side, rng).image), "path": None} for s in shown]
            asked = Exchange(f"Which is {one}, <image> or <image>?", f"The {'first' if first else 'second'}.")
            rows.append({"id": f"pair.{index}", "images": pictures, "conversations": _llava([asked])})
        parquet.write_table(pa.Table.from_pylist(rows), self.folder / "pairs.parquet", row_group_size=100)

    def _videos(self, clips: dict[str, str]) -> None:
        """LLaVA JSON Lines: what the header of a video tells, and what it shows."""
        records = []
        for name, clip in clips.items():
            facts = video_facts(self.folder / clip)
            for key, asked in {
                "shows": Exchange("What does the video show?", SHOWN[name]),
                "length": Exchange("How many seconds long is the video, rounded?", str(round(facts.seconds))),
                "wider": Exchange("Is the video wider than it is high?", YES_NO[facts.width > facts.height]),
                "higher": Exchange("Is the video higher than it is wide?", YES_NO[facts.height > facts.width]),
            }.items():
                records.append({"id": f"{name}.{key}", "video": clip, "conversations": _llava([asked], "<video>\n")})
        _write_lines(self.folder / "videos.jsonl", records)

    def _texts(self) -> None:
        """Messages without a picture: which of two groups a thing belongs to."""
        rng = random.Random(f"{SEED}/texts")
        records = []
        for index in range(self.size.texts):
            count = self.size.quiz if index == self.size.texts - 1 else TURNS
            asked = []
            for stamp, one, _, another in self._contrasts(count, rng):
                names = rng.sample((one, another), 2)
                asked.append(Exchange(f"Is {stamp.name} {names[0]} or {names[1]}?", sentence(one)))
            records.append({"id": f"text.{index}", "messages": _messages(asked)})
        _write_lines(self.folder / "texts.jsonl", records)

    def _contrasts(self, count: int, rng: random.Random) -> Iterator[tuple[Stamp, str, Stamp, str]]:
        """Two things and what each of them, and not the other, may be called: a crow, "an animal", a bus, "a vehicle".

        Only groups with a noun that is true of all their things; nothing is denied of a group that overlaps.
        """
        named = [(s, self.vocabulary.group(s.group).one) for s in self.stamps if names_one_thing(s.name)]
        known = [(stamp, one) for stamp, one in named if one is not None]
        for _ in range(count):
            stamp, one = rng.choice(known)
            other, another = rng.choice([(s, o) for s, o in known if self.vocabulary.may_deny(stamp.group, s.group)])
            yield stamp, one, other, another


def _llava(exchanges: Iterable[Exchange], marks: str = "") -> list[dict[str, str]]:
    """Turns in LLaVA's words, the marks before the first question."""
    turns = []
    for number, exchange in enumerate(exchanges):
        turns.append({"from": "human", "value": exchange.question if number else marks + exchange.question})
        turns.append({"from": "gpt", "value": exchange.answer})
    return turns


def _messages(exchanges: Iterable[Exchange], image: str | None = None) -> list[dict[str, Any]]:
    """Chat messages, the picture as a typed item before the first question."""
    messages: list[dict[str, Any]] = []
    for number, exchange in enumerate(exchanges):
        content: Any = exchange.question
        if image is not None and not number:
            content = [{"type": "image", "image": image}, {"type": "text", "text": exchange.question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": exchange.answer}]
    return messages


def _some(stamps: Sequence[Stamp], count: int, rng: random.Random) -> list[Stamp]:
    return sorted(rng.sample(stamps, min(count, len(stamps))), key=lambda stamp: stamp.id)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def write_recipe(path: Path, encoder: Path, language: Path) -> None:
    """The recipe of the mixture beside its folder `data`; the backbones' folders are filled in."""
    text = files("opsin.recipes").joinpath("mixture.yaml").read_text(encoding="utf-8")
    for name, folder in (("ENCODER", encoder), ("LANGUAGE", language)):
        text = text.replace(f'"${{{name}}}"', json.dumps(str(folder.absolute())))
    write_text(path, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch and write everything; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m opsin.quickstart.mixture", description="Write a mixture of all modalities and its recipe."
    )
    parser.add_argument("out", type=Path, help="folder for data/ and recipe.yaml")
    out: Path = parser.parse_args(arguments).out
    messages = Console(stderr=True)
    try:
        assets = fetch_all(messages)
        shapes, videos = fetch_easy_vqa(messages), fetch_videos(messages)
        stamps = draw_stamps() if assets.stamps is None else read_stamps(assets.stamps)
        groups, close = (DRAWN_GROUPS, frozenset()) if assets.stamps is None else (GROUPS, CLOSE)
        catalogue = tuple(stamp.thing() for stamp in stamps.stamps if stamp.name)
        Mixture(stamps.stamps, Vocabulary(groups, catalogue, close), out / "data").write(shapes, videos)
        write_recipe(out / "recipe.yaml", assets.encoder, assets.language_model)
    except OpsinError as error:
        messages.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    Console().print(f"mixture: {out / 'data'}\nrecipe: {out / 'recipe.yaml'}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
