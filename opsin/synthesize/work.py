"""What a synthesis has to do: the subjects of all sources, kept in two sides, and the tasks of all kinds, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from opsin.core.errors import DataError, OpsinError, PictureError
from opsin.core.files import sha256_bytes
from opsin.core.types import Picture
from opsin.synthesize.context import Vocabulary
from opsin.synthesize.kinds.base import KindBase
from opsin.synthesize.recipe import Synthesis
from opsin.synthesize.sources import Collected
from opsin.synthesize.subject import Subject, Task, seed_of
from opsin.vision.picture import picture_size

OnRead = Callable[[str], None]
"""Told what is being read."""


@dataclass(frozen=True)
class Work:
    """Everything that is to be made, in the order in which it will be written."""

    tasks: tuple[Task, ...]
    kinds: dict[str, KindBase]
    """By name, as tasks name them."""
    vocabulary: Vocabulary
    """Of all sources together: the words for things that checks know."""
    own: Mapping[str, Vocabulary]
    """By the id of a task, that of its source alone: what one source has annotated everywhere, another has not."""
    image_root: Path
    """The folder that image paths of the samples are relative to: the sources' own, or one that holds them all."""
    held_out: frozenset[str]
    """Ids of the tasks whose pictures are kept apart."""
    pictures: int
    problems: tuple[str, ...]
    """Entries of the sources that cannot be used."""


def plan(recipe: Synthesis, out: Path, most_pictures: int | None = None, on_read: OnRead = lambda _: None) -> Work:
    """Read the sources (documents are drawn into `out`) and list the tasks.

    A picture belongs to one side, train or held out, by its path and the recipe's seed: what is made of it, and of
    groups of pictures, never crosses. Groups are drawn within a source. `most_pictures` takes the first of each source.

    Raises:
        DataError: two pictures have the same id, or nothing can be made of what is left.
        OpsinError: a source cannot be read, or there is nothing to be made.
    """
    collected = []
    for pictures in recipe.pictures:
        on_read(pictures.told)
        collected.append(pictures.read(out))
    root = Path(os.path.commonpath([one.root for one in collected]))
    damaged: list[str] = []
    on_read("opening the pictures")
    found = [
        (_placed(subject, root, recipe.pictures[source].id_prefix), source)
        for source, one in enumerate(collected)
        for subject in islice(_that_open(one.subjects, damaged), most_pictures)
    ]
    subjects = [subject for subject, _ in found]
    _refuse_twins(subjects)
    tasks: list[Task] = []
    own: dict[str, Vocabulary] = {}
    kept: set[str] = set()
    sides: dict[tuple[bool, int], list[Subject]] = {}
    for subject, source in found:
        sides.setdefault((_is_held_out(subject, recipe), source), []).append(subject)
    for kind in recipe.kinds:
        for (is_kept, source), side in sorted(sides.items(), key=lambda item: item[0]):
            made = list(_tasks(kind, side, recipe.seed))
            tasks.extend(made)
            own.update((task.id, collected[source].vocabulary) for task in made)
            kept.update(task.id for task in made if is_kept)
    problems = (*(problem for one in collected for problem in one.problems), *damaged)
    if not tasks:
        advice = (
            f"nothing can be made of the {len(subjects):,} pictures: do they have the annotations that the kinds need?"
        )
        raise DataError(problems, advice) if problems else OpsinError(advice)
    return Work(
        tasks=tuple(tasks),
        kinds={kind.name: kind for kind in recipe.kinds},
        vocabulary=_together(collected),
        own=own,
        image_root=root,
        held_out=frozenset(kept),
        pictures=len(subjects),
        problems=problems,
    )


def _that_open(subjects: Iterable[Subject], problems: list[str]) -> Iterator[Subject]:
    """Those whose pictures have a header that can be read: no answer is bought about what nobody can train on."""
    for subject in subjects:
        try:
            for image in subject.images:
                picture_size(Picture(path=subject.root / image))
        except PictureError as error:
            problems.append(f"{subject.where}: {subject.id}: {error}")
        else:
            yield subject


def _tasks(kind: KindBase, subjects: Sequence[Subject], seed: int) -> Iterable[Task]:
    for subject in kind.subjects(subjects, seed):
        for draw in range(kind.draws):
            identity = f"{subject.id}#{kind.name}" + (f".{draw + 1}" if draw else "")
            yield Task(identity, kind.name, subject, seed_of(seed, identity), draw)


def _placed(subject: Subject, root: Path, id_prefix: str) -> Subject:
    """The subject with an id, and paths relative to a root, that are right beside those of other sources."""
    subject = replace(subject, id=id_prefix + subject.id) if id_prefix else subject
    if subject.root == root:
        return subject
    below = subject.root.relative_to(root)
    video = None if subject.video is None else (below / subject.video).as_posix()
    images = tuple((below / image).as_posix() for image in subject.images)
    return replace(subject, images=images, video=video, root=root)


def _refuse_twins(subjects: Sequence[Subject]) -> None:
    seen: dict[str, Subject] = {}
    problems = []
    for subject in subjects:
        first = seen.setdefault(subject.id, subject)
        if first is not subject:
            problems.append(f"{subject.where}: the id {subject.id!r} is also that of {first.where}")
    if problems:
        raise DataError(
            problems,
            "samples are known by their pictures' ids, which are paths without their endings where no `id` is given; "
            "list each picture once, or give those of one name an `id` (JSON Lines), and a source an `id_prefix`",
        )


def _is_held_out(subject: Subject, recipe: Synthesis) -> bool:
    path = subject.video or subject.images[0]  # two entries may be about one picture
    drawn = int(sha256_bytes(f"{recipe.seed}/split/{path}".encode("utf-8", "surrogatepass"))[:12], 16)
    return drawn < recipe.held_out * 16**12


def _together(collected: Sequence[Collected]) -> Vocabulary:
    """One vocabulary of all sources: what is a thing in one is a thing in the others."""
    groups = {group.label: group for one in collected for group in one.vocabulary.groups}
    catalogue = {thing.name: thing for one in collected for thing in one.vocabulary.catalogue}
    close = frozenset().union(*(one.vocabulary.close for one in collected))
    return Vocabulary(tuple(groups.values()), tuple(catalogue.values()), close)
