"""How much more memory a process needs for a large file than for a small one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MEASURE = """
import json, resource, sys
from pathlib import Path
from opsin.data.check import check

folder = Path(sys.argv[1])
{code}
peaks = []
for count in (5_000, 100_000):
    checked = check(written(count))
    assert checked.counts["conversations"] == count and not checked.problems
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def growth(code: str, folder: Path) -> int:
    """Growth of the peak in KiB from checking 5,000 records to 100,000; `code` defines `written(count)`, a source."""
    command = [sys.executable, "-c", MEASURE.format(code=textwrap.dedent(code)), str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=250).stdout)
