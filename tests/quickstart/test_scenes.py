from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from opsin.core.errors import AssetError
from opsin.quickstart.drawn import DRAWN_GROUPS, draw_stamps
from opsin.quickstart.groups import CLOSE, GROUPS
from opsin.quickstart.scenes import MAX_THINGS, Plan, Scene, compose, most_members, plan_scene
from opsin.quickstart.stamps import read_stamps
from opsin.synthesize.context import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = Vocabulary(GROUPS, (), CLOSE)


def scenes(stamps_dir: Path, count: int) -> list[Scene]:
    stamps = read_stamps(stamps_dir).stamps
    made = []
    for index in range(count):
        rng = random.Random(index)
        made.append(compose(plan_scene(index, 4, rng), stamps, VOCABULARY, 120, rng))
    return made


def test_counts_are_as_planned_and_uniform(stamps_dir: Path) -> None:
    totals, members = Counter(), Counter()
    for scene in scenes(stamps_dir, 120):
        assert len(scene.context.things) == scene.plan.total
        assert scene.context.counts()[scene.focus] == scene.plan.members
        if scene.plan.asked == "total":
            totals[scene.plan.total] += 1
        else:
            members[scene.plan.members] += 1
    assert totals == dict.fromkeys(range(1, MAX_THINGS + 1), 12)
    assert members == dict.fromkeys(range(1, MAX_THINGS), 15)


def test_things_do_not_touch_and_have_names_of_their_own(stamps_dir: Path) -> None:
    for scene in scenes(stamps_dir, 60):
        things = scene.context.things
        assert len({thing.name for thing in things}) == len(things)
        for index, a in enumerate(things):
            assert a.box is not None
            assert 0 <= a.box[0] < a.box[2] <= 1
            for b in things[:index]:
                assert b.box is not None
                apart_x = a.box[2] <= b.box[0] or b.box[2] <= a.box[0]
                apart_y = a.box[3] <= b.box[1] or b.box[3] <= a.box[1]
                assert apart_x or apart_y


def test_groups_in_a_scene_do_not_overlap_in_meaning(stamps_dir: Path) -> None:
    for scene in scenes(stamps_dir, 60):
        labels = sorted(scene.context.counts())
        assert not any(frozenset({a, b}) in CLOSE for a in labels for b in labels if a != b)


def test_every_visible_pixel_lies_in_a_box() -> None:
    stamps = draw_stamps().stamps
    vocabulary = Vocabulary(DRAWN_GROUPS)
    for index in range(20):
        rng = random.Random(index)
        scene = compose(plan_scene(index, most_members(stamps, vocabulary), rng), stamps, vocabulary, 96, rng)
        rest = scene.image.copy()
        ground = Counter(scene.image.getdata()).most_common(1)[0][0]
        for thing in scene.context.things:
            assert thing.box is not None
            box = tuple(round(96 * edge) for edge in thing.box)
            assert scene.image.crop(box).getextrema() != tuple((value, value) for value in ground)
            rest.paste(ground, box)
        spread = [
            abs(low - value) + abs(high - value) for (low, high), value in zip(rest.getextrema(), ground, strict=True)
        ]
        assert max(spread) <= 30  # soft edges fainter than the outline may remain


def test_a_collection_too_poor_for_the_plan_is_refused() -> None:
    circles = [stamp for stamp in draw_stamps().stamps if stamp.group == "circles"][:3]
    vocabulary = Vocabulary(DRAWN_GROUPS)
    with pytest.raises(AssetError, match="4 stamps of different names"):
        compose(Plan("group", 4, 4), circles, vocabulary, 96, random.Random(0))
    with pytest.raises(AssetError, match="more groups that do not overlap"):
        compose(Plan("total", 5, 2), circles, vocabulary, 96, random.Random(0))
    with pytest.raises(AssetError, match="none of the 3 stamps can be counted"):
        most_members(circles, Vocabulary(()))
