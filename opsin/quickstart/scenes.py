"""Composed scenes: several stamps at known places, so that counts and positions are exactly true."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from PIL import Image

from opsin.core.errors import AssetError
from opsin.quickstart.captions import names_one_thing
from opsin.quickstart.stamps import BACKGROUNDS, paste, place
from opsin.synthesize.context import Context
from opsin.synthesize.english import listing, sentence

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from opsin.quickstart.stamps import Stamp
    from opsin.synthesize.context import Vocabulary

MAX_THINGS = 5
GRID = 3
"""Each stamp stays in its own cell of a grid of this many rows and columns, so no two can touch."""

Asked = Literal["total", "group"]


@dataclass(frozen=True, slots=True)
class Plan:
    """`total` stamps, `members` of them of one group; `asked` tells which of the two is uniform over the scenes."""

    asked: Asked
    total: int
    members: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A composed picture, what is true of it, and the group that was planned for counting."""

    image: Image.Image
    context: Context
    plan: Plan
    focus: str


def plan_scene(index: int, most_members: int, rng: random.Random) -> Plan:
    """Cycle through the counts: even scenes make the total uniform over 1..5, odd ones the members over 1..4.

    `most_members` caps the members where the collection is small (`most_members()`).
    """
    if index % 2 == 0:
        total = index // 2 % MAX_THINGS + 1
        return Plan("total", total, rng.randint(1, min(total, most_members)))
    members = index // 2 % min(MAX_THINGS - 1, most_members) + 1
    return Plan("group", rng.randint(members, MAX_THINGS), members)


def most_members(stamps: Sequence[Stamp], vocabulary: Vocabulary) -> int:
    """The largest number of differently named stamps of one group that can be counted."""
    sizes = [len(members) for label, members in _by_group(stamps).items() if vocabulary.group(label).many]
    if not sizes:
        raise AssetError(
            f"none of the {len(stamps)} stamps can be counted: they need a group with nouns and a name each"
        )
    return max(sizes)


def compose(plan: Plan, stamps: Sequence[Stamp], vocabulary: Vocabulary, side: int, rng: random.Random) -> Scene:
    """Choose stamps for the plan and draw them."""
    focus, chosen = choose(plan, stamps, vocabulary, rng)
    image, context = draw(chosen, side, rng)
    return Scene(image, context, plan, focus)


def choose(plan: Plan, stamps: Sequence[Stamp], vocabulary: Vocabulary, rng: random.Random) -> tuple[str, list[Stamp]]:
    """A group that can be counted and the stamps of the scene: names all different, no two groups that overlap.

    The group must be able to show every count that scenes ask for, or its noun would give the small counts away.
    """
    by_group = _by_group(stamps)
    enough = max(plan.members, min(MAX_THINGS - 1, most_members(stamps, vocabulary)))
    able = [label for label, found in by_group.items() if vocabulary.group(label).many and len(found) >= enough]
    if not able:
        raise AssetError(f"no group has nouns to count with and {enough} stamps of different names to show")
    focus = rng.choice(able)
    chosen = rng.sample(list(by_group[focus].values()), plan.members)
    while len(chosen) < plan.total:
        groups, names = {stamp.group for stamp in chosen}, {stamp.name for stamp in chosen}
        fitting = [
            stamp
            for label, members in by_group.items()
            if label != focus and all(label == group or vocabulary.may_deny(label, group) for group in groups)
            for stamp in members.values()
            if stamp.name not in names
        ]
        if not fitting:
            raise AssetError(f"a scene of {plan.total} things needs more groups that do not overlap {sorted(groups)}")
        chosen.append(rng.choice(fitting))
    rng.shuffle(chosen)
    return focus, chosen


def _by_group(stamps: Sequence[Stamp]) -> dict[str, dict[str, Stamp]]:
    """Stamps that count as exactly one thing, by group and name."""
    by_group: dict[str, dict[str, Stamp]] = defaultdict(dict)
    for stamp in stamps:
        if names_one_thing(stamp.name):
            by_group[stamp.group].setdefault(stamp.name, stamp)
    return by_group


def draw(stamps: Sequence[Stamp], side: int, rng: random.Random) -> tuple[Image.Image, Context]:
    """Put the stamps, of similar size, into random cells of the grid; the boxes are those of their visible pixels."""
    canvas = Image.new("RGB", (side, side), rng.choice(BACKGROUNDS))
    cell = side // GRID
    cells = rng.sample(range(GRID * GRID), len(stamps))
    things = []
    for stamp, index in zip(stamps, cells, strict=True):
        cutout = place(stamp, round(cell * rng.uniform(0.78, 0.98)), mirror=stamp.mirrors and rng.random() < 0.5)
        corner = (
            index % GRID * cell + rng.randint(0, cell - cutout.width),
            index // GRID * cell + rng.randint(0, cell - cutout.height),
        )
        things.append(stamp.thing(paste(canvas, cutout, corner)))
    caption = sentence(listing([thing.name for thing in things]))
    return canvas, Context((caption,), tuple(things))
