"""What `opsin inspect` shows is what training takes: tokens, supervision, pixels, positions, packs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import OpsinError
from opsin.core.types import Clip, Conversation, Turn
from opsin.data.example import make_example
from opsin.model.config import ModelConfig
from opsin.report.inspect import page
from opsin.report.inspect_terminal import lines
from opsin.report.pieces import pieces, spans
from opsin.report.sight import MOST_LINES, MOST_VIEWS, patch_lines, sight, svg
from opsin.report.stage_view import check_found, named, spread
from opsin.text.templates import VicunaV1
from opsin.text.tokenizer import Tokenizer
from tests.support.corpora import corpus_of
from tests.support.models import dialogue, examples_of, model_value
from tests.support.tokenizers import chatml_tokenizer_dir, llama_tokenizer_dir
from tests.support.videos import write_video
from tests.support.views import EVIL, KINDS, Page, asked, clip, picture, prepared, stage_view

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("square", [["<image: 4 tokens>"], ["<image: 4 tokens>"] * 2, ["<video: 3 frames, 12 tokens>"], []]),
        (
            "any_res",  # 60x40 fills 64x64, four tiles: 4 + 2 x (4 + 1); a clip's frames are pooled to one token each
            [["<image: 4 tiles, 14 tokens>"], ["<image: 5 tokens>"] * 2, ["<video: 3 frames, 4 tokens>"], []],
        ),
        ("native", [["<image: 2 tokens>"], ["<image: 2 tokens>"] * 2, ["<video: 3 frames, 4 tokens>"], []]),
        (
            "latents",
            [["<image: 4 tiles, 15 tokens>"], ["<image: 3 tokens>"] * 2, ["<video: 3 frames, 9 tokens>"], []],
        ),
    ],
)
def test_media_are_folded_to_one_line(tmp_path: Path, kind: str, expected: list[list[str]]) -> None:
    _, prepare = prepared(tmp_path, **KINDS[kind])
    examples = examples_of(asked(tmp_path), prepare)
    found = [[p.text for p in pieces(e, prepare.tokenizer) if p.kind == "medium"] for e in examples]
    assert found == expected


def test_by_cross_attention_a_picture_takes_no_tokens(tmp_path: Path) -> None:
    _, prepare = prepared(tmp_path, **KINDS["aside"])
    example = make_example(asked(tmp_path)[0], prepare)
    found = [piece.text for piece in pieces(example, prepare.tokenizer) if piece.kind == "medium"]
    assert found == ["<image: no tokens: seen by cross-attention>"]
    assert sum(span.tokens for span in spans(example)) == example.num_tokens


@pytest.mark.parametrize("tokenizer_dir", [chatml_tokenizer_dir, llama_tokenizer_dir])
@pytest.mark.parametrize("answer", ["A cat.", " two  spaces\n\n", EVIL, "Grüße 猫 🐈", "\u202eabc"])
def test_what_is_coloured_is_what_is_learned(tmp_path: Path, tokenizer_dir: Any, answer: str) -> None:
    _, prepare = prepared(tmp_path, tokenizer_dir(tmp_path))
    if tokenizer_dir is llama_tokenizer_dir:
        prepare = replace(prepare, template=VicunaV1())
    example = make_example(dialogue("x", "What is it? " + EVIL, answer, [picture(tmp_path)]), prepare)
    found = pieces(example, prepare.tokenizer)
    learned = example.tokens_T[example.supervised_T]
    assert sum(len(piece.texts) for piece in found if piece.learned) == example.num_supervised
    shown = "".join(piece.text for piece in found if piece.learned and piece.kind == "text")
    assert shown.strip(" ") == prepare.tokenizer.decode(learned.tolist()).strip(" ")
    assert answer.strip(" ") in shown
    controls = [i for i in example.tokens_T[~example.visual_T].tolist() if i in prepare.tokenizer.control_ids]
    assert sum(piece.kind == "control" for piece in found) == len(controls)


def test_the_first_token_of_a_document_is_not_shown_as_learned(tmp_path: Path) -> None:
    _, prepare = prepared(tmp_path)
    example = make_example(dialogue("x", "a", "b"), prepare)
    every = replace(example, supervised_T=np.ones_like(example.supervised_T))
    found = pieces(every, prepare.tokenizer)
    assert [piece.learned for piece in found][:2] == [False, True]
    assert sum(len(piece.texts) for piece in found if piece.learned) == every.num_supervised


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_every_kind_needs_nothing_else(tmp_path: Path, kind: str) -> None:
    config, prepare = prepared(tmp_path, **KINDS[kind])
    evil = Conversation(EVIL, (Turn("user", (EVIL,)), Turn("assistant", (f"answer {EVIL}",))), where=f"{EVIL}:1")
    examples = corpus_of(tmp_path, [*asked(tmp_path), evil], prepare)
    html = page(EVIL, [stage_view(config, examples, refused=[EVIL])])
    found = Page(html)
    assert found.open == []
    assert found.handlers == []
    assert found.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in found.addresses)
    assert not {"script", "link", "iframe", "object"} & found.tags
    assert not re.search(r"url\(|@import|https?://", html)
    assert "<script" not in html
    assert "\x1b" not in html
    assert 'name="viewport"' in html
    safe = EVIL.replace("\x1b", "�")
    assert f"answer {safe}" in found.tokens("text learned")
    assert safe in found.tokens("text")
    assert html.count("<article") == 5
    assert "Refused: 1" in html


def test_coloured_text_of_the_page(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, **KINDS["any_res"])
    examples = corpus_of(tmp_path, asked(tmp_path)[:1], prepare)
    found = Page(page("x", [stage_view(config, examples)]))
    assert found.tokens("text learned") == "A cat."
    assert found.tokens("control learned") == "<|im_end|>"
    assert found.tokens("medium") == "<image: 4 tiles, 14 tokens>"
    assert found.tokens("text") == "user\n\nWhat is it?\nassistant\n\n"


def test_a_padded_square_is_drawn_where_it_is(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, encoder="siglip")
    example = make_example(dialogue("x", "a", "b", [picture(tmp_path, 40, 30)]), prepare)
    (view,) = sight(*example.seen[0], prepare, config.encoder.patch_size).views
    assert view.image.size == (32, 32)
    assert view.picture == (0, 4, 32, 28)  # 40x30 on 40x40, to 32x32
    assert patch_lines(view) == ("M0 16H32M16 0V32", 1)
    drawn = svg(view)
    assert '<path class="edge" d="M0 4H32V28H0Z"/>' in drawn
    assert "tiles" not in drawn
    assert "kept" not in drawn


def test_tiles_and_what_is_kept_of_them_are_drawn_where_they_are(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, **KINDS["any_res"])
    example = make_example(dialogue("x", "a", "b", [picture(tmp_path)]), prepare)
    base, mosaic = sight(*example.seen[0], prepare, config.encoder.patch_size).views
    assert (base.name, mosaic.name) == ("base", "4 tiles")
    assert base.picture == base.kept == (0, 0, 32, 32)
    assert mosaic.image.size == (64, 64)
    assert mosaic.picture == (0, 10, 64, 53)  # 60x40 on 64x64: 43 rows high
    assert mosaic.kept == (0, 16, 64, 48)  # the middle two of four rows of tokens
    drawn = svg(mosaic)
    assert '<path class="tiles" d="M0 32H64M32 0V64"/>' in drawn
    assert '<path class="kept" d="M0 16H64V48H0Z"/>' in drawn
    assert '<path class="patches" d="M0 16H64M0 48H64M16 0V64M48 0V64"/>' in drawn
    pixels = prepare.resolution.pixels([Image.open(tmp_path / "1.png").convert("RGB")], example.layouts[0], (0, 0, 0))
    assert np.array_equal(np.asarray(mosaic.image)[:32, 32:], pixels[2].transpose(1, 2, 0))  # base, then row by row


def test_pixels_beyond_the_last_patch_are_marked_off(tmp_path: Path) -> None:
    value = model_value(chatml_tokenizer_dir(tmp_path), encoder="siglip")
    value["encoder"]["config"] |= {"image_size": 36}
    value["resolution"] = {"kind": "square", "size": 36}
    config = ModelConfig.model_validate(value).resolved()
    prepare = preparation(config, Tokenizer.load(tmp_path / "chatml"))
    example = make_example(dialogue("x", "a", "b", [picture(tmp_path, 40, 40)]), prepare)
    (view,) = sight(*example.seen[0], prepare, config.encoder.patch_size).views
    assert patch_lines(view)[0] == "M0 16H36M0 32H36M16 0V36M32 0V36"


def test_a_fine_grid_is_thinned(tmp_path: Path) -> None:
    value = model_value(chatml_tokenizer_dir(tmp_path), encoder="siglip")
    value["encoder"]["config"] |= {"image_size": 960, "patch_size": 8}
    value["resolution"] = {"kind": "square", "size": 960}
    config = ModelConfig.model_validate(value).resolved()
    prepare = preparation(config, Tokenizer.load(tmp_path / "chatml"))
    example = make_example(dialogue("x", "a", "b", [picture(tmp_path, 40, 40)]), prepare)
    (view,) = sight(*example.seen[0], prepare, config.encoder.patch_size).views
    path, every = patch_lines(view)
    assert every == 3
    assert path.startswith("M0 24H960M0 48H960")
    assert path.count("H") <= MOST_LINES


def test_positions_of_a_picture_in_m_rope(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, **KINDS["native"])
    examples = corpus_of(tmp_path, asked(tmp_path)[:1], prepare)
    rows = re.findall(r'<tr><th scope="row">(text|image)</th>(.*?)</tr>', page("x", [stage_view(config, examples)]))
    cells = [(name, re.findall("<td>(.*?)</td>", row)) for name, row in rows]
    first = spans(examples[0])[0].end
    assert cells[1] == ("image", ["2", f"{first}", f"{first}", f"{first}–{first + 1}"])  # 1 x 1 x 2 tokens
    start, end = first + 2, first + 1 + spans(examples[0])[2].tokens
    assert cells[2][1][1:] == [f"{start}–{end}"] * 3


def test_a_video_says_when_its_frames_are_shown(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, **KINDS["any_res"])
    video = Clip(path=write_video(tmp_path / "v.mkv", range(30)))  # 3 s at 10 frames a second
    turns = (Turn("user", (video, "\nWhat?")), Turn("assistant", ("It jumps.",)))
    html = page("x", [stage_view(config, corpus_of(tmp_path, [Conversation("v", turns)], prepare))])
    assert "&lt;video: 3 frames, 4 tokens&gt;" in html
    for name in ("frame 0, 0.00 s", "frame 10, 1.00 s", "frame 20, 2.00 s"):
        assert name in html
    assert "0 at 0.00, 10 at 1.00, 20 at 2.00" in html


def test_of_a_long_clip_some_frames_are_drawn(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, encoder="siglip")
    turns = (Turn("user", (clip(tmp_path, 30), "\nWhat?")), Turn("assistant", ("It jumps.",)))
    example = make_example(Conversation("v", turns), prepare)
    seen = sight(*example.seen[0], prepare, config.encoder.patch_size)
    assert (len(seen.views), seen.of) == (MOST_VIEWS, 30)
    assert (seen.views[0].name, seen.views[-1].name) == ("frame 0", "frame 29")


def test_a_picture_that_is_damaged_is_said_in_its_place(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path)
    examples = corpus_of(tmp_path, asked(tmp_path)[:1], prepare)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    html = page("x", [stage_view(config, examples)])
    assert '<p class="problem">' in html
    assert "1.png" in html


def test_the_pack_of_a_sample(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path)
    examples = corpus_of(tmp_path, [dialogue(f"s{i}", "a", "b") for i in range(3)], prepare)
    html = page("x", [stage_view(config, examples, chosen=[1])])
    taken = examples.costs.tokens.sum()
    assert "Pack 1 of 1, step 1" in html
    assert f"{taken} of 256" in html
    others = re.search(r"beside (s\d), (s\d)<", html)
    assert others is not None
    assert set(others.groups()) == {"s0", "s2"}
    assert "In no pack: the stage has none" in page("x", [stage_view(config, examples, steps=[])])


def test_samples_are_chosen_evenly_or_by_id(tmp_path: Path) -> None:
    _, prepare = prepared(tmp_path)
    examples = corpus_of(tmp_path, [dialogue(name, "a", "b") for name in ("one", "two", "one")], prepare)
    assert spread(100, 4) == [0, 25, 50, 75]
    assert spread(3, 6) == [0, 1, 2]
    assert named(examples, ["two", "one"]) == [1, 0, 2]
    with pytest.raises(OpsinError, match=r"no sample has the id 'twoo'; did you mean 'two'\?"):
        check_found(set(examples.ids()), ["one", "twoo"])


def test_terminal_view(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, **KINDS["any_res"])
    examples = corpus_of(tmp_path, [*asked(tmp_path)[:1], dialogue("evil", "\x1b[2J [bold]x[/bold]", "b")], prepare)
    view = stage_view(config, examples, refused=["d.json:3: gone"])
    console = Console(width=200, force_terminal=True, color_system="standard", highlight=False)
    with console.capture() as capture:
        for line in lines(view):
            console.print(line, soft_wrap=True)
    text = capture.get()
    assert "2 samples, 1 pack (" in text
    assert "refused: d.json:3: gone" in text
    assert "40x60 (HxW) as 5 x 32x32 pixels, 20 patches" in text
    assert "\x1b[1;35m<image: 4 tiles, 14 tokens>" in text
    assert "\x1b[1;30;42mA cat." in text
    assert "\x1b[2J" not in text
    assert "[bold]x[/bold]" in text
