"""What a run says when something of weight happens."""

from __future__ import annotations

import re
import shlex
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from opsin.checkpoint.model import CHECKPOINTS
from opsin.checkpoint.store import candidates
from opsin.core.errors import StoppedError
from opsin.train.audit import Audit
from opsin.train.loop import StageLoop
from opsin.train.optimiser import rising_steps
from opsin.train.recipe import Stage

LAYER = re.compile(r".*?\.(?:layers|layer|blocks)\.\d+")
"""How a weight's name begins, up to its layer."""


def audit_line(stage: Stage, audit: Audit) -> str:
    """What is trained, as the audit found it."""
    trained = ", ".join(f"{part} {count:,}" for part, count in audit.scalars.items())
    # A tower's layers behind the selected one, for example: not a mistake, but the reader should know.
    places = Counter(found[0] if (found := LAYER.match(name)) else name for name in audit.unreached)
    idle = ", ".join(place if count == 1 else f"{place} ({count} tensors)" for place, count in places.items())
    unreached = f"; not used in this stage, so unchanged: {idle}" if idle else ""
    return f"stage {stage.name!r}: gradient audit passed; trained parameters: {trained}{unreached}"


def warmup_lines(stage: Stage, steps: int) -> Iterator[str]:
    """What to say of a stage that ends before its rates have risen."""
    rising = rising_steps(stage, steps)
    if rising > steps:
        yield (
            f"stage {stage.name!r}: a warmup of {rising:,} steps, but it has {steps:,}: its rates end at "
            f"{steps / rising:.1%} of their peak; lower warmup_steps"
        )


def stopped(loop: StageLoop, out: Path) -> StoppedError:
    """What ends a run that a signal has asked to end."""
    number = loop.stopping or 0
    return StoppedError(
        f"ended by {signal.Signals(number).name} after step {loop.step} of {len(loop.steps)} of stage "
        f"{loop.stage.name!r}, which is saved; go on with: opsin train --resume {shlex.quote(str(out))}",
        number,
    )


def last_good(out: Path) -> str:
    """Where a run that is lost can go on from."""
    for path in candidates(out / CHECKPOINTS)[:1]:
        return f"the last good checkpoint is {path}; go on with: opsin train --resume {shlex.quote(str(out))}"
    return "there is no checkpoint yet"
