"""A synthesis from its recipe to its files. It can end at any moment, and goes on where it ended."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from opsin.core.errors import (
    BudgetError,
    OpsinError,
    PictureError,
    StoppedError,
    TeacherError,
    UnansweredError,
    collapsed,
)
from opsin.core.files import make_directory, write_json, write_text
from opsin.core.lock import LOCK, RunLock
from opsin.core.stop import Stop
from opsin.report.synthesis import synthesis_page
from opsin.report.synthesis_view import QUARANTINE, RECIPE, STATISTICS
from opsin.synthesize.brake import Brake, told_refused
from opsin.synthesize.checks import is_looked_up
from opsin.synthesize.engine import Engine, Facts
from opsin.synthesize.estimate import Estimate, estimate, most_of
from opsin.synthesize.exported import Affordable, Exported
from opsin.synthesize.ledger import Ledger, Totals
from opsin.synthesize.making import Maker
from opsin.synthesize.near_duplicates import without_near_duplicates
from opsin.synthesize.outcome import Outcome
from opsin.synthesize.output import LEDGER, PAGE, PROBLEMS, Teaching, write_samples
from opsin.synthesize.recipe import Synthesis
from opsin.synthesize.request import Request, Usage
from opsin.synthesize.statistics import summarise
from opsin.synthesize.subject import Task
from opsin.synthesize.teacher_values import Limits, OpenAI, Rules
from opsin.synthesize.work import Work, plan
from opsin.synthesize.workers import work_through, workers_for

NOTICE = b"\nno more requests are begun, those on their way are waited for; Ctrl-C again: leave at once\n"
SHOWN_PROBLEMS = 20
PAGE_SAMPLES = 24
"""Samples, and refused ones, on the page of a run."""


@dataclass(frozen=True)
class Watch:
    """What a run tells while it works."""

    on_line: Callable[[str], None] = lambda _line: None
    on_facts: Callable[[int, int, Facts], None] = lambda _done, _tasks, _facts: None
    """Tasks done, all tasks, and the engine's numbers, after every task. Only those that a teacher is asked for count:
    neither what rules make, nor what is not begun since its kind is nearly always refused."""


@dataclass(frozen=True)
class Result:
    """What a run made; `ended` says why it ended before everything was asked, or is empty."""

    out: Path
    statistics: dict[str, Any]
    image_root: Path
    ended: str = ""

    @property
    def complete(self) -> bool:
        """Whether every task has its outcome."""
        states = self.statistics["states"]
        return not states.get("waiting") and not states.get("unanswered")


def synthesize(recipe: Synthesis, out: Path, watch: Watch | None = None, *, most_pictures: int | None = None) -> Result:
    """Make everything that the recipe asks for, and write it to `out`; what is answered there is not asked again.

    Whatever ends it early (a budget, Ctrl-C, an endpoint that refuses), what was made until then is written.

    Raises:
        StoppedError: a signal ended it; the files are written.
        TeacherError: the teacher cannot be asked, or nearly all its answers are refused; the files are written.
        OpsinError: annotations, prompts or the directory cannot be used.
    """
    watch = watch or Watch()
    with _directory(out, recipe, watch):
        maker = _maker(recipe, plan(recipe, out, most_pictures, watch.on_line), watch)
        if isinstance(recipe.teacher, Rules):
            return _written(out, maker, [maker.by_rules(task) for task in maker.work.tasks])
        asking = _Asking(maker, watch)
        with Ledger.open(out / LEDGER) as ledger, Stop(NOTICE) as stop:
            Exported(out).refuse()
            _tell_uncertain(ledger, watch)
            error = asyncio.run(asking.run(recipe.teacher, recipe.limits, ledger, stop))
            told = str(error) if error is not None else ""
            outcomes = asking.outcomes(ledger)
            result = _written(out, maker, outcomes, told, totals=ledger.totals)
        if stop.wanted is not None:
            raise StoppedError(f"ended by a signal, {asking.told()}; the same command goes on", stop.wanted)
        if isinstance(error, TeacherError):
            raise TeacherError(f"{error}\n{asking.told()}; the same command goes on")
        refused = [told_refused(outcomes, kind) for kind in sorted(asking.stopped)]
        advice = _advice(result) if refused else []
        if asking.stopped & _waiting_kinds(outcomes):
            share = recipe.checks.stop_when_refused
            going_on = f"or ask for the rest all the same with checks.stop_when_refused=null, which is {share:g} now"
            raise TeacherError("\n".join([*refused, *([told] if told else []), asking.told(), *advice, going_on]))
        for line in (*refused, *advice):
            watch.on_line(line)
        return result


def synthesize_by_batch(
    recipe: Synthesis,
    out: Path,
    watch: Watch | None = None,
    *,
    imported: Sequence[Path] = (),
    exported: Path | None = None,
    most_pictures: int | None = None,
) -> Result:
    """The same without asking anybody: answers are imported, and requests without one are exported, as Batch API files.

    A refused answer makes a new request, so a job may take several rounds.

    Raises:
        OpsinError: as `synthesize`; or the teacher is none that can be asked.
    """
    from opsin.synthesize.batch import export_batch  # needs the client, as an extra

    watch = watch or Watch()
    if not isinstance(recipe.teacher, OpenAI):
        raise OpsinError(f"batch files are for a teacher that is asked over a network, not for {recipe.teacher.kind!r}")
    with _directory(out, recipe, watch):
        maker = _maker(recipe, plan(recipe, out, most_pictures, watch.on_line), watch)
        with Ledger.open(out / LEDGER) as ledger:
            waiting = Exported(out)
            if imported:
                waiting.settle(_take(imported, maker, ledger, recipe.teacher, set(waiting.keys), watch))
            outcomes = [_replayed(maker, task, ledger)[0] for task in maker.work.tasks]
            for line in _refused(maker, outcomes):
                watch.on_line(line)
            result = _written(out, maker, outcomes, totals=ledger.totals)
            if exported is not None:
                waiting.refuse()
                pending = _unanswered(maker, [one.task for one in outcomes if one.state == "waiting"], ledger)
                affordable = Affordable(pending, recipe.teacher, recipe.limits, ledger.totals)
                files = export_batch(
                    affordable, exported, recipe.teacher, ledger, lambda paths: waiting.note(paths, affordable.keys)
                )
                for line in (*(f"batch  {path}" for path in files), affordable.told()):
                    watch.on_line(line)
            return result


def estimated(recipe: Synthesis, out: Path, *, most_pictures: int | None = None) -> Estimate:
    """What the recipe will take in this directory, without repairs; nothing is asked or written.

    Raises:
        OpsinError: annotations or prompts cannot be used.
    """
    with tempfile.TemporaryDirectory() as drawn:
        maker = _maker(recipe, plan(recipe, Path(drawn), most_pictures), Watch())
        pictures, samples, refused = maker.work.pictures, len(maker.work.tasks), len(maker.work.problems)
        if not isinstance(recipe.teacher, OpenAI):
            return Estimate(0, 0, Usage(0, 0), Usage(0, 0), 0.0, pictures, samples, refused)
        path = out / LEDGER if (out / LEDGER).exists() else Path(drawn) / LEDGER
        with Ledger.open(path) as ledger:
            found = estimate(_first_requests(maker), ledger, recipe.teacher, recipe.limits)
            return replace(found, pictures=pictures, samples=samples, refused_entries=refused)


def _first_requests(maker: Maker) -> Iterator[Request]:
    for task in maker.work.tasks:
        if maker.asks(maker.work.kinds[task.kind]):
            with suppress(PictureError):  # the run will name it
                yield maker.first_request(task)


def _take(
    paths: Sequence[Path], maker: Maker, ledger: Ledger, teacher: OpenAI, out: Set[str], watch: Watch
) -> set[str]:
    """Answers of batch files into the ledger; the keys of what came back, answered or not.

    To requests of this recipe, and to those that are `out`, though a recipe with other pictures asked them.
    """
    from opsin.synthesize.batch import import_batch

    awaited = {request.key: most_of(request, teacher) for request in _unanswered(maker, maker.work.tasks, ledger)}

    def most(key: str) -> Usage | None:
        known = ledger.lookup(key)
        return awaited.get(key, Usage(0, 0) if key in out else None) if known is None else known.usage

    took = import_batch(paths, ledger, teacher, most)
    for problem in took.problems:
        watch.on_line(problem)
    watch.on_line(f"{took.kept:,} answers taken, {took.known:,} were here, {len(took.problems):,} lines without one")
    return took.came


def _tell_uncertain(ledger: Ledger, watch: Watch) -> None:
    """Money that may have been paid for nothing is said out loud."""
    if lost := [one for one in ledger.uncertain() if ledger.lookup(one.key) is None]:
        cost = sum(one.most.cost for one in lost)
        watch.on_line(
            f"{len(lost):,} requests of earlier runs were under way when these died; their answers are lost and are "
            f"asked for again, and the budget counts them as paid (at most {cost:,.4f})"
        )


def _unanswered(maker: Maker, tasks: Sequence[Task], ledger: Ledger) -> Iterator[Request]:
    """Requests of the tasks that the ledger has no answer to, each once."""
    seen: set[str] = set()
    for task in tasks:
        _, request = _replayed(maker, task, ledger)
        if request is not None and request.key not in seen:
            seen.add(request.key)
            yield request


def _replayed(maker: Maker, task: Task, ledger: Ledger) -> tuple[Outcome, Request | None]:
    """A task's outcome from the ledger alone, and the first request that it has no answer to, if it waits for one."""
    steps = maker.steps(task)
    request = None
    try:
        request = next(steps)
        while True:
            request = steps.send(ledger.lookup(request.key))
    except StopIteration as ended:
        outcome: Outcome = ended.value
        return outcome, request if outcome.state == "waiting" else None


def _refused(maker: Maker, outcomes: Sequence[Outcome]) -> list[str]:
    """What to tell of kinds of which nearly all are refused; a task whose repair is still to come is not judged."""
    brake = Brake(maker.work.tasks, maker.recipe.checks.stop_when_refused)
    for index, outcome in enumerate(outcomes):
        if outcome.state != "waiting":
            brake.count(index, outcome)
    judged = [outcome for outcome in outcomes if outcome.state != "waiting"]
    waiting = _waiting_kinds(outcomes)
    warning = "; a next round would pay for the same: change the model or the prompt first"
    return [
        told_refused(judged, kind) + (warning if kind in waiting else "")
        for kind in maker.work.kinds
        if kind in brake.stopped
    ]


def _waiting_kinds(outcomes: Sequence[Outcome]) -> set[str]:
    return {outcome.task.kind for outcome in outcomes if outcome.state == "waiting"}


def _advice(result: Result) -> list[str]:
    """What to do about a kind of which nearly all answers are refused."""
    lines = [
        "answers that are here stay as they are; with another model, prompt, temperature or extra_body all is asked "
        "anew; if it is the server itself that is mended (its chat template, say), take a new directory with --out"
    ]
    if result.statistics["states"].get("quarantined"):
        lines.insert(0, f"look at {result.out / QUARANTINE} (`opsin inspect {result.out}` shows some of it)")
    return lines


@contextmanager
def _directory(out: Path, recipe: Synthesis, watch: Watch) -> Iterator[None]:
    """The directory, held by this process alone, with the recipe in it."""
    make_directory(out)
    with RunLock(out):
        before = out / RECIPE
        if not before.exists() and any(path.name != LOCK for path in out.iterdir()):
            raise OpsinError(f"{out}: not empty, and no synthesis; choose another directory with --out")
        value = recipe.model_dump(mode="json")
        if before.exists() and json.loads(before.read_bytes()) | {"limits": value["limits"]} != value:
            watch.on_line(f"{before}: the recipe has changed since; requests that are the same keep their answers")
        write_json(before, value)
        yield


def _maker(recipe: Synthesis, work: Work, watch: Watch) -> Maker:
    lines = collapsed(work.problems)
    for line in lines[:SHOWN_PROBLEMS]:
        watch.on_line(line)
    if len(lines) > SHOWN_PROBLEMS:
        watch.on_line(f"... and {len(lines) - SHOWN_PROBLEMS:,} more")
    refused = f", {len(work.problems):,} entries cannot be used" if work.problems else ""
    watch.on_line(f"{work.pictures:,} pictures{refused}; {len(work.tasks):,} samples to make")
    made = {task.kind for task in work.tasks}
    if none := [kind for kind in work.kinds if kind not in made]:
        watch.on_line(
            f"no sample of {', '.join(none)} to make: its share of so few pictures is none, or they lack what it needs"
        )
    prompts = {name: kind.load_prompt() for name, kind in work.kinds.items()}
    teacher = recipe.teacher
    if isinstance(teacher, Rules):
        return Maker(recipe, work, prompts)
    extra = json.dumps(teacher.extra_body, sort_keys=True) if teacher.extra_body else ""
    return Maker(recipe, work, prompts, teacher.model, extra)


class _Asking:
    """All tasks through an engine, at once as many as the limits allow; outcomes in the order of the tasks."""

    def __init__(self, maker: Maker, watch: Watch) -> None:
        self.maker = maker
        self.watch = watch
        self._brake = Brake(maker.work.tasks, maker.recipe.checks.stop_when_refused)
        self._found: dict[int, Outcome] = {}
        self._done = 0  # of those that a teacher is asked for
        self._to_ask = sum(maker.asks(maker.work.kinds[task.kind]) for task in maker.work.tasks)
        self._ahead = Counter(task.kind for task in maker.work.tasks)  # not begun, or never to be

    @property
    def stopped(self) -> set[str]:
        """Kinds of which nearly all answers are refused."""
        return self._brake.stopped

    async def run(self, teacher: OpenAI, limits: Limits, ledger: Ledger, stop: Stop) -> OpsinError | None:
        """Ask until all is done; what ended it early, if something did."""
        from opsin.synthesize.endpoint import Endpoint  # needs the client, as an extra: the rules do without

        indices = range(len(self.maker.work.tasks))
        async with Engine(Endpoint(teacher, limits), ledger, limits) as engine:
            make = partial(self._make, engine)
            try:
                await work_through(engine, indices, make, workers=workers_for(limits.concurrency), stop=stop)
            except (TeacherError, BudgetError) as error:
                return error
        return None

    async def _make(self, engine: Engine, index: int) -> None:
        task = self.maker.work.tasks[index]
        if task.kind in self.stopped:
            return
        self._ahead[task.kind] -= 1
        steps = self.maker.steps(task)
        try:
            request = next(steps)
            while True:
                try:
                    request = steps.send(await engine.answer(request))
                except UnansweredError as error:
                    request = steps.throw(error)
        except StopIteration as ended:
            self._found[index] = ended.value
        if self._brake.count(index, self._found[index]) and self._ahead[task.kind]:
            self.watch.on_line(f"{task.kind}: nearly all answers are refused; no more samples of this kind are begun")
        if self.maker.asks(self.maker.work.kinds[task.kind]):
            self._done += 1
            never = sum(self._ahead[kind] for kind in self.stopped)
            self.watch.on_facts(self._done, self._to_ask - never, engine.facts())

    def outcomes(self, ledger: Ledger) -> list[Outcome]:
        """Of all tasks. Those that were not reached may have their answers from an earlier run, or are waiting."""
        for index, task in enumerate(self.maker.work.tasks):
            if index not in self._found:
                self._found[index], _ = _replayed(self.maker, task, ledger)
        return [self._found[index] for index in range(len(self.maker.work.tasks))]

    def told(self) -> str:
        """How far it came."""
        done = sum(outcome.state not in ("waiting", "unanswered") for outcome in self._found.values())
        return f"{done:,} of {len(self.maker.work.tasks):,} tasks are done"


def _written(
    out: Path, maker: Maker, outcomes: Sequence[Outcome], ended: str = "", *, totals: Totals | None = None
) -> Result:
    """Near-duplicates apart, then all files."""
    recipe, work = maker.recipe, maker.work
    outcomes = without_near_duplicates(outcomes, recipe.checks.near_duplicate)
    versions = {name: prompt.version for name, prompt in maker.prompts.items()}
    write_samples(out, outcomes, work, Teaching(recipe.teacher.kind, maker.model, versions))
    looked_up = {
        name for name, kind in work.kinds.items() if maker.asks(kind) and is_looked_up(kind.expected, recipe.checks)
    }
    statistics = summarise(outcomes, looked_up=looked_up)
    statistics |= {"pictures": work.pictures, "image_root": str(work.image_root), "refused_entries": len(work.problems)}
    if totals is not None:
        spent = {"requests": totals.requests, "failed": totals.failed, "cost": totals.spent.cost}
        statistics["spent"] = spent | {
            "cost_of_no_answer": round(max(0.0, totals.spent.cost - statistics["usage"]["cost"]), 9)
        }
    write_json(out / STATISTICS, statistics)
    write_text(out / PROBLEMS, "".join(f"{problem}\n" for problem in work.problems))
    write_text(out / PAGE, synthesis_page(out, PAGE_SAMPLES, recipe.seed))
    return Result(out, statistics, work.image_root, ended)
