"""What goes out in batch files: no more than a budget allows, and not to be asked a second time unawares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from opsin.core.errors import OpsinError
from opsin.core.files import write_json
from opsin.synthesize.estimate import most_of

if TYPE_CHECKING:
    from opsin.synthesize.ledger import Totals
    from opsin.synthesize.request import Request
    from opsin.synthesize.teacher_values import Limits, OpenAI

NOTE = "exported.json"


class Exported:
    """The note in an output directory that requests of it are out in batch files."""

    def __init__(self, out: Path) -> None:
        self._path = out / NOTE

    def note(self, files: Sequence[Path], keys: Sequence[str]) -> None:
        """Remember the files, and which requests are in them."""
        if files:
            write_json(self._path, {"files": [str(path.absolute()) for path in files], "requests": list(keys)})

    @property
    def keys(self) -> list[str]:
        """Of the requests that are out."""
        return self._value()["requests"]

    def settle(self, keys: Set[str]) -> None:
        """These requests came back, answered or not; with the last one the note is gone."""
        value = self._value()
        if out := [key for key in value["requests"] if key not in keys]:
            write_json(self._path, value | {"requests": out})
        else:
            self._path.unlink(missing_ok=True)

    def refuse(self) -> None:
        """Raises OpsinError while answers are awaited: whoever asks as well may pay twice."""
        value = self._value()
        if out := value["requests"]:
            raise OpsinError(
                f"{self._path}: {len(out):,} requests of {', '.join(value['files'])} are out as batch files (first "
                f"{out[0]}), and asking now would pay for them twice; take their answers with --import-batch, those of "
                "the error file as well; or remove that note if they were never uploaded, or will never be answered"
            )

    def _value(self) -> dict[str, list[str]]:
        if not self._path.exists():
            return {"files": [], "requests": []}
        try:
            return TypeAdapter(dict[str, list[str]]).validate_json(self._path.read_bytes())
        except ValidationError as error:
            raise OpsinError(
                f"{self._path}: not the note of what is out as batch files ({error.errors()[0]['msg']}); remove it if "
                "all answers are here"
            ) from None


class Affordable:
    """As many of the requests, in order, as what is left of the budgets is enough for; the others are counted."""

    def __init__(self, requests: Iterable[Request], teacher: OpenAI, limits: Limits, totals: Totals) -> None:
        self._requests = requests
        self._teacher = teacher
        self._excess = totals.excess
        self._cost = float("inf") if limits.max_cost is None else limits.max_cost - totals.spent.cost
        self._number = float("inf") if limits.max_requests is None else limits.max_requests - totals.requests
        self.keys: list[str] = []
        """Of the requests that went out."""
        self._left = 0
        self._most = 0.0

    def __iter__(self) -> Iterator[Request]:
        price = self._teacher.price
        for request in self._requests:
            bound = most_of(request, self._teacher)
            cost = 0.0 if price is None else price.of(bound.prompt_tokens, bound.answer_tokens, batch=True).cost
            cost += self._excess
            if self._left or self._most + cost > self._cost or len(self.keys) >= self._number:
                self._left += 1
                continue
            self.keys.append(request.key)
            self._most += cost
            yield request

    def told(self) -> str:
        """What went out, and what did not."""
        told = f"{len(self.keys):,} requests exported: upload the files, and take the answers with --import-batch"
        if self._teacher.price is not None:
            told += f", at most {self._most:,.4f} {self._teacher.price.currency}"
        return told + (f"; {self._left:,} more are over the budget" if self._left else "")
