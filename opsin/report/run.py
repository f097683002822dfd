"""What the page of a run tells: read from the run's files, or given by the caller."""

from __future__ import annotations

import datetime as dt
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from opsin.core.errors import OpsinError
from opsin.report.scores import Evaluation, Reference, Scores

SAMPLES = "samples"
"""Folder of a run with a page's part for every stage."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of metrics.jsonl of a step that was learned from; runs of older versions lack what has a default.

    `sources`: by source, the sum of the losses of its supervised tokens and their number; bytes of `memory`; `waited`
    of `seconds` for data.
    """

    step: int
    loss: float
    rates: Mapping[str, float]
    tokens: int
    seconds: float
    grad_norm: float | None = None
    norms: Mapping[str, float] = field(default_factory=dict)
    supervised: int = 0
    pictures: int = 0
    samples: int = 0
    packs: int = 0
    sources: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    waited: float | None = None
    memory: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Visual tokens included."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """What was measured after a step: the loss on data kept apart, scores by benchmark and name."""

    step: int
    loss: float | None
    benchmarks: Mapping[str, Mapping[str, float]]


@dataclass
class StageRecord:
    """What metrics.jsonl tells of a stage; `troubles`: steps that were skipped, and why; `skipped` samples."""

    steps: list[Step] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    troubles: list[tuple[int, str]] = field(default_factory=list)
    skipped: int = 0

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(step.seconds for step in self.steps)

    @property
    def tokens_per_second(self) -> float | None:
        """Over all steps."""
        return sum(step.tokens for step in self.steps) / self.seconds if self.seconds else None


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the data holds: named counts, pictures per group (train, held out), and what was skipped, by reason."""

    counts: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Everything else: the first evaluation is the model before training, the last one the finished model.

    `machine` is a short text such as "2 CPU cores"; `chat` the command that talks to the model; `image_root` where the
    pictures of the evaluations lie.
    """

    name: str
    date: str
    seconds: float
    machine: str
    chat: str
    evaluations: Sequence[Evaluation]
    image_root: Path | None
    references: Sequence[Reference] = ()
    data: DataFacts = field(default_factory=DataFacts)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the evaluations, which are in RUN/scores.json."""
        plain = replace(self, evaluations=(), image_root=None)
        root = None if self.image_root is None else str(self.image_root.absolute())
        return asdict(plain) | {"image_root": root}


def read_facts(path: Path, evaluations: Sequence[Evaluation]) -> RunFacts:
    """What `RunFacts.as_dict` wrote.

    Raises:
        OpsinError: it cannot be read.
    """
    value = _read_json(path)
    try:
        value["evaluations"] = evaluations
        value["image_root"] = None if value["image_root"] is None else Path(value["image_root"])
        value["references"] = [Reference(**reference) for reference in value["references"]]
        value["data"] = DataFacts(**value["data"])
        return RunFacts(**value)
    except (KeyError, TypeError) as error:
        raise OpsinError(f"{path}: not what a report is made of ({error}); delete it to do without") from None


def facts_of(files: RunFiles) -> RunFacts:
    """What the files of a run tell, where nobody knows more."""
    began = dt.datetime.fromtimestamp((files.path / "recipe.json").stat().st_mtime, tz=dt.UTC)
    told = [f"{name} {files.provenance[name]}" for name in ("opsin", "torch") if name in files.provenance]
    return RunFacts(
        name=str(files.recipe.get("name", files.path.name)),
        date=began.strftime("%Y-%m-%d %H:%M UTC"),
        seconds=sum(record.seconds for record in files.stages.values()),
        machine=", ".join(told),
        chat=f"opsin chat {shlex.quote(str(files.path))}",
        evaluations=files.evaluations,
        image_root=None,
    )


@dataclass(frozen=True)
class RunFiles:
    """A run as its files tell it: the resolved recipe, versions and hashes, metrics by stage, and evaluations."""

    path: Path
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    stages: Mapping[str, StageRecord]
    evaluations: Sequence[Evaluation]

    @property
    def samples(self) -> str:
        """A few samples of every stage as the model sees them: HTML that the run has kept."""
        names = [f"{stage.get('name')}.html" for stage in self.recipe.get("stages", [])]
        kept = [self.path / SAMPLES / name for name in names]
        return "".join(path.read_text(encoding="utf-8") for path in kept if path.exists())


def read_run(path: Path) -> RunFiles:
    """Read a run's directory, also while it trains.

    Raises:
        OpsinError: there is no run, or one of its files cannot be read.
    """
    if not (path / "recipe.json").is_file():
        raise OpsinError(f"{path}: no recipe.json there; this is not a run directory")
    scores = _read_json(path / "scores.json") if (path / "scores.json").exists() else []
    try:
        evaluations = [Evaluation(one["name"], Scores.from_dict(one)) for one in scores]
    except (KeyError, TypeError) as error:
        raise OpsinError(f"{path / 'scores.json'}: not the scores of a run ({error})") from None
    metrics = path / "metrics.jsonl"
    return RunFiles(
        path=path,
        recipe=_read_json(path / "recipe.json"),
        provenance=_read_json(path / "run.json"),
        stages=read_metrics(metrics) if metrics.exists() else {},
        evaluations=evaluations,
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OpsinError(f"{path}: cannot be read ({error})") from None


def read_metrics(path: Path) -> dict[str, StageRecord]:
    """The lines of metrics.jsonl, by stage, in order.

    Raises:
        OpsinError: the file is missing or a line, other than a half-written last one, cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise OpsinError(f"{path}: cannot be read ({error.strerror}); was the run trained?") from None
    stages: dict[str, StageRecord] = {}
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            _add(stages.setdefault(str(value["stage"]), StageRecord()), value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # a killed run can leave its last line half written
            raise OpsinError(f"{path}:{number}: not a line of training metrics ({error})") from None
    return stages


def _add(record: StageRecord, value: dict[str, Any]) -> None:
    if "check" in value:
        check = value["check"]
        record.checks.append(Check(int(value["step"]), check["loss"], check["benchmarks"]))
        return
    record.skipped += value.get("skipped", 0)
    if value.get("trouble"):
        record.troubles.append((int(value["step"]), str(value["trouble"])))
    if value["loss"] is not None:
        record.steps.append(_step(value))


def _step(value: dict[str, Any]) -> Step:
    known = ("grad_norm", "norms", "supervised", "pictures", "samples", "packs", "sources", "waited", "memory")
    return Step(
        step=int(value["step"]),
        loss=float(value["loss"]),
        rates={str(name): float(rate) for name, rate in value["lr"].items()},
        tokens=int(value["tokens"]),
        seconds=float(value["seconds"]),
        **{name: value[name] for name in known if name in value},
    )
