"""The data of the quick start, from stamps, from Easy-VQA or drawn: one folder with the same files each time.

`images/`, `align.json`, `instruct-1.json` and `instruct-2.json` (LLaVA JSON), `captions.json` and `instances.json` (of
stamps and drawings: COCO's annotations), `synthesis.yaml`, `heldout.json` (questions), `statistics.json`.
The same seed and size give the same bytes.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsin.quickstart import questions
from opsin.quickstart.annotations import write_annotations, write_recipe
from opsin.quickstart.drawn import DRAWN_GROUPS, draw_stamps
from opsin.quickstart.easy_vqa import write_easy_vqa
from opsin.quickstart.groups import CLOSE, GROUPS
from opsin.quickstart.records import TINY, Dataset, DatasetSize, Writer
from opsin.quickstart.scenes import compose, most_members, plan_scene
from opsin.quickstart.split import Split, split
from opsin.quickstart.stamps import read_stamps, view
from opsin.synthesize import rules
from opsin.synthesize.context import Context, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from opsin.quickstart.stamps import Collection, Stamp
    from opsin.synthesize.context import Group

__all__ = ["TINY", "Dataset", "DatasetSize", "build", "build_drawn", "build_easy_vqa"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A written picture and what is true of it."""

    id: str
    image: str
    context: Context


def build(stamps_dir: Path, out: Path, seed: int, size: DatasetSize) -> Dataset:
    """The real thing: the Tux Paint stamps."""
    return _build(read_stamps(stamps_dir), GROUPS, CLOSE, out, seed, size)


def build_drawn(out: Path, seed: int, size: DatasetSize = TINY) -> Dataset:
    """A few dozen drawn shapes; nothing is downloaded."""
    return _build(draw_stamps(), DRAWN_GROUPS, frozenset(), out, seed, size)


def build_easy_vqa(source: Path, out: Path, seed: int, size: DatasetSize) -> Dataset:
    """Easy-VQA (its wheel, or the folder it unpacks to); `scenes` and `held_out` say how many pictures to take."""
    return write_easy_vqa(source, Writer.start(out), seed, size)


def _build(
    collection: Collection,
    groups: Sequence[Group],
    close: frozenset[frozenset[str]],
    out: Path,
    seed: int,
    size: DatasetSize,
) -> Dataset:
    parts = split(collection.stamps, size.held_out, random.Random(f"{seed}/split"))
    catalogue = tuple(stamp.thing() for stamp in parts.train if stamp.name)
    vocabulary = Vocabulary(tuple(groups), catalogue, close)
    writer = Writer.start(out)
    pictures = _write_views(parts.train, writer, vocabulary, seed, size)
    scenes = _write_scenes(parts.train, writer, vocabulary, seed, size)
    _write_longer(pictures, scenes, writer, vocabulary, seed, size)
    _write_questions(parts.held_out, writer, vocabulary, seed, size)
    write_annotations(out, [(shown.image, shown.context) for shown in (*pictures, *scenes)], size.side)
    write_recipe(out, groups, close)
    return writer.finish(seed, size, _group_sizes(parts, groups), collection.skipped)


def _write_views(
    stamps: Sequence[Stamp], writer: Writer, vocabulary: Vocabulary, seed: int, size: DatasetSize
) -> list[Shown]:
    """Of every view a caption; of the first its group, and checks apart, or one would tell the other; then names."""
    pictures = []
    for stamp in stamps:
        for index in range(size.views):
            identity = f"{stamp.id}.{index}"
            rng = random.Random(f"{seed}/{identity}")
            seen = view(stamp, index, size.side, rng)
            image = writer.picture(identity, seen.image)
            if index == 0:
                writer.labels[image] = stamp.group
            writer.caption(identity, image, rng.choice(rules.BRIEF_INSTRUCTIONS), stamp.caption)
            named = rules.naming(seen.context, rng) if index else rules.grouping(seen.context)
            writer.converse("conversation", f"{identity}.name", image, named)
            if index == 0:
                checks = rules.checking(seen.context, vocabulary, rng)
                writer.converse("conversation", f"{identity}.check", image, checks, part=2)
                # Once more, so that the groups are not forgotten over the checks.
                writer.converse("conversation", f"{identity}.again", image, named, part=2)
            pictures.append(Shown(identity, image, seen.context))
    return pictures


def _write_scenes(
    stamps: Sequence[Stamp], writer: Writer, vocabulary: Vocabulary, seed: int, size: DatasetSize
) -> list[Shown]:
    scenes = []
    most = most_members(stamps, vocabulary)
    for index in range(size.scenes):
        identity = f"scene.{index:04d}"
        rng = random.Random(f"{seed}/{identity}")
        scene = compose(plan_scene(index, most, rng), stamps, vocabulary, size.side, rng)
        image = writer.picture(identity, scene.image)
        if index % 3 != 2:
            writer.converse("conversation", f"{identity}.total", image, rules.totalling(scene.context))
        writer.converse("conversation", identity, image, rules.counting(scene.context, vocabulary, rng), part=2)
        scenes.append(Shown(identity, image, scene.context))
    return scenes


def _write_longer(
    pictures: Sequence[Shown],
    scenes: Sequence[Shown],
    writer: Writer,
    vocabulary: Vocabulary,
    seed: int,
    size: DatasetSize,
) -> None:
    """Descriptions, half of them of scenes; reasoning, three quarters of it about scenes of several things."""
    rng = random.Random(f"{seed}/longer")
    several = [scene for scene in scenes if len(scene.context.things) > 1]
    named = [picture for picture in pictures if picture.context.things[0].name]
    for shown in (*_sample(scenes, size.detail // 2, rng), *_sample(named, size.detail - size.detail // 2, rng)):
        writer.converse("detail", shown.id, shown.image, rules.detail(shown.context, vocabulary, rng))
    about_scenes = size.reasoning * 3 // 4
    for shown in (*_sample(several, about_scenes, rng), *_sample(named, size.reasoning - about_scenes, rng)):
        writer.converse("reasoning", shown.id, shown.image, rules.reasoning(shown.context, vocabulary, rng), part=2)


def _sample(shown: Sequence[Shown], count: int, rng: random.Random) -> list[Shown]:
    return rng.sample(shown, min(count, len(shown)))


def _write_questions(
    stamps: Sequence[Stamp], writer: Writer, vocabulary: Vocabulary, seed: int, size: DatasetSize
) -> None:
    images = {}
    labels = [group.label for group in vocabulary.groups]
    for stamp in stamps:
        seen = view(stamp, 0, size.side, random.Random(f"{seed}/{stamp.id}"))
        images[stamp.id] = writer.picture(f"heldout/{stamp.id}", seen.image)
        writer.ask("category", stamp.id, images[stamp.id], questions.category(stamp), labels)
        writer.ask("caption", stamp.id, images[stamp.id], questions.caption(stamp))
    for stamp, exchange in questions.yes_no(stamps, vocabulary, random.Random(f"{seed}/yes_no")):
        writer.ask("yes_no", f"{stamp.id}.{exchange.answer}", images[stamp.id], exchange, tuple(rules.YES_NO.values()))
    most = most_members(stamps, vocabulary)
    for index in range(size.counting):
        identity = f"heldout/scene.{index:04d}"
        rng = random.Random(f"{seed}/{identity}")
        scene = compose(plan_scene(index, most, rng), stamps, vocabulary, size.side, rng)
        image = writer.picture(identity, scene.image)
        writer.ask("count", identity, image, questions.count(scene, vocabulary))


def _group_sizes(parts: Split, groups: Sequence[Group]) -> dict[str, Any]:
    train = Counter(stamp.group for stamp in parts.train)
    held_out = Counter(stamp.group for stamp in parts.held_out)
    return {group.label: {"train": train[group.label], "held_out": held_out[group.label]} for group in groups}
