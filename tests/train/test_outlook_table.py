"""What a person reads of a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opsin.train.outlook import Costly, SourceOutlook, StageOutlook
from opsin.train.outlook_table import lines

STAGE = StageOutlook(
    name="instruct",
    mixture="0123456789abcdef" * 4,
    sources=(
        SourceOutlook("captions", "a.json", 1200, {"image": 1000, "video": 200}, 600, 36_000, 30_000, 3000, 58_000),
        SourceOutlook("chat", "b.jsonl", 50, {"text": 50}, 100, 12_000, 0, 9000, 0),
    ),
    available=1250,
    epoch=700,
    samples=650,
    packs=40,
    steps=20,
    samples_per_step=None,
    packs_per_step=(2.0, 2),
    tokens=48_000,
    visual=30_000,
    supervised=12_000,
    patches=58_000,
    efficiency=0.98,
    edges=(100, 200),
    histogram=(600, 50),
    costliest=(Costly("a.json:7: (x)", 180, 49),),
    balance=(0.0, 0.0),
    uneven="",
    memory={"language": 2_000_000_000},
    refused=(),
    dropped=(),
    shortened=(),
    notes=(),
)


def test_sources_stand_in_columns() -> None:
    table = [line for line in lines([STAGE], None) if line.startswith("    ")][:3]
    assert [line.split() for line in table[1:]] == [
        ["captions", "1,200", "600", "36,000", "75.0%", "30,000", "3,000", "1,000", "image,", "200", "video"],
        ["chat", "50", "100", "12,000", "25.0%", "0", "9,000", "50", "text"],
    ]
    assert table[0].index("kinds") == table[1].index("1,000 image") == table[2].index("50 text")


def test_time_is_in_units_that_say_something() -> None:
    assert "  time         8.0 min at 100 tokens/s" in list(lines([STAGE], 100))
    assert list(lines([STAGE, STAGE], 10))[-1] == "all stages: 2.7 h at 10 tokens/s"


def test_balance_is_told_where_there_is_something_to_balance() -> None:
    assert not any("balance" in line for line in lines([STAGE], None))
    uneven = list(lines([replace(STAGE, balance=(0.25, 0.1), uneven="make it 4")], None))
    place = uneven.index("  balance      busiest rank +25.0% tokens, +10.0% patches over the mean")
    assert uneven[place + 1].strip() == "make it 4"


def test_the_head_says_what_is_there_and_what_is_taken() -> None:
    def head(**changes: Any) -> str:
        return next(lines([replace(STAGE, name="x", **changes)], None))

    assert head() == "stage x: 1,250 samples available, 700 an epoch; 650 different ones in 40 packs (98.0% full)"
    assert head(epoch=None) == "stage x: 650 of the first 1,250 samples of a stream in 40 packs (98.0% full)"
    one = head(available=1, epoch=1, samples=1, packs=1)
    assert one == "stage x: 1 sample, 1 pack (98.0% full)"


def test_samples_that_something_happened_to_are_counted_and_named() -> None:
    told = list(
        lines([replace(STAGE, refused=("a.json:3: (y) no such file",), dropped=("a.json:4: (z) 9 tokens",))], None)
    )
    assert told[-4:] == ["  dropped: 1", "    a.json:4: (z) 9 tokens", "  refused: 1", "    a.json:3: (y) no such file"]


def test_a_step_of_samples_tells_its_packs() -> None:
    assert "  steps        20" in list(lines([STAGE], None))
    told = replace(STAGE, samples_per_step=128, packs_per_step=(11.25, 14))
    assert "  steps        20 of 128 samples, in 11.2 packs on average and 14 at most" in list(lines([told], None))
