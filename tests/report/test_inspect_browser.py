"""The pages in a real browser: nothing is fetched, nothing is wider than a phone, everything is drawn.

The page is laid out in a frame that a script measures; the page itself has no script.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from typing import TYPE_CHECKING, Any

import pytest

from opsin.data.check import source_of
from opsin.report import file_page
from opsin.report.file_view import look_at
from opsin.report.inspect import page
from tests.support.corpora import corpus_of
from tests.support.views import EVIL, KINDS, asked, prepared, stage_view

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
    "--window-size=1600,1200",
    "--dump-dom",
)
SMALLEST = 11
"""Pixels of the smallest letters that may be on a page."""

MEASURE = """
const found = () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const texts = [...page.querySelectorAll("body *")].filter(one => [...one.childNodes].some(
    node => node.nodeType === 3 && node.data.trim()) && one.getClientRects().length);
  const scale = svg => svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  const size = one => parseFloat(view.getComputedStyle(one).fontSize) * scale(one.ownerSVGElement);
  const svgs = [...page.querySelectorAll("svg")];
  result.textContent = JSON.stringify({
    wide: page.documentElement.scrollWidth,
    fetched: view.performance.getEntriesByType("resource").length,
    smallest: Math.min(...texts.map(size)),
    broken: [...page.images].filter(one => !one.naturalWidth).length,
    flat: svgs.filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 8).length,
    drawn: svgs.length + page.images.length,
    samples: page.querySelectorAll("article").length,
  });
};
"""


def measured(html: str, width: int, folder: Path) -> dict[str, Any]:
    """What a browser makes of a page of some width."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.fail(f"no browser to look at the pages with; install one of {', '.join(BROWSERS)}")
    outer = folder / "outer.html"
    outer.write_text(
        f'<meta charset="utf-8"><pre id="result"></pre><script>{MEASURE}</script>'
        f'<iframe id="frame" style="border:0;width:{width}px;height:900px" onload="found()" '
        f'srcdoc="{escape(html, quote=True)}"></iframe>',
        encoding="utf-8",
    )
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    result = re.search(r'<pre id="result">(.+?)</pre>', done.stdout)
    assert result is not None, done.stderr[-2000:]
    return json.loads(unescape(result[1]))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["any_res", "native"])
def test_a_stage(tmp_path: Path, kind: str, width: int) -> None:
    config, prepare = prepared(tmp_path, **KINDS[kind])
    examples = corpus_of(tmp_path, asked(tmp_path), prepare)
    view = stage_view(config, examples, refused=[f"{EVIL} {'x' * 300}"], notes=["y" * 200])
    found = measured(page("x" * 80, [view]), width, tmp_path)
    assert found["wide"] <= width
    assert found["samples"] == 4
    assert found["drawn"] >= 8
    assert (found["fetched"], found["broken"], found["flat"]) == (0, 0, 0)
    assert found["smallest"] >= SMALLEST


@pytest.mark.parametrize("width", [390, 1280])
def test_a_file(tmp_path: Path, width: int) -> None:
    _, prepare = prepared(tmp_path)
    corpus_of(tmp_path, asked(tmp_path), prepare)
    source = source_of(tmp_path / "data.json").model_copy(update={"allow_outside": True})
    found = measured(file_page.page(look_at(source, 10)), width, tmp_path)
    assert found["wide"] <= width
    assert found["samples"] == 4
    assert (found["fetched"], found["broken"], found["flat"]) == (0, 0, 0)
    assert found["smallest"] >= SMALLEST
