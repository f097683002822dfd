"""A tokenizer with two separate doors: text, which never becomes a control token, and control tokens by name."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

from opsin.core.errors import CheckpointError, RenderError
from opsin.core.files import sha256_bytes, write_bytes
from opsin.text.sealing import Spec, control_tokens, sealed, vocab_ids, without_dummy_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A Hugging Face tokenizer, read from its files; make one with `Tokenizer.load`.

    `opening_ids` is what the tokenizer itself puts before any text: the beginning-of-text token or nothing.
    `chat_template` is the Jinja text that comes with it, and `named_tokens` are the tokens that this text can name.
    """

    control_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    vocab_size: int
    opening_ids: tuple[int, ...]
    chat_template: str | None = field(repr=False)
    named_tokens: dict[str, str] = field(repr=False)
    _controls: dict[str, int] = field(repr=False)
    _original: Backend = field(repr=False, compare=False)
    _text: Backend = field(repr=False, compare=False)
    _continuation: Backend | None = field(repr=False, compare=False)
    _files: dict[str, bytes] = field(repr=False)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read `tokenizer.json` and, if there are any, `tokenizer_config.json` and `chat_template.jinja`."""
        files = _read_files(directory)
        spec = _parse(directory / TOKENIZER_FILE, files[TOKENIZER_FILE])
        if "model" not in spec:
            raise CheckpointError(f"{directory / TOKENIZER_FILE}: has no 'model': not the file of a fast tokenizer")
        config = _parse(directory / CONFIG_FILE, files[CONFIG_FILE]) if CONFIG_FILE in files else {}
        named = {name: _named_token(config, name) for name in ("bos_token", "eos_token", "pad_token")}
        every_id = _every_id(spec)
        ids = {name: _id_of(token, name, every_id, directory) for name, token in named.items()}
        controls = control_tokens(spec, [t for t in (named["bos_token"], named["eos_token"]) if t is not None])
        text_spec = sealed(spec, controls)
        continuation_spec = without_dummy_prefix(text_spec)
        original = _backend(spec, directory)
        original.no_padding()
        original.no_truncation()
        control_ids = frozenset(controls.values())
        return cls(
            control_ids=control_ids,
            bos_id=ids["bos_token"],
            eos_id=ids["eos_token"],
            pad_id=ids["pad_token"],
            vocab_size=max(every_id.values(), default=-1) + 1,
            opening_ids=_opening_ids(config, ids["bos_token"], original, control_ids),
            chat_template=_chat_template(files, config),
            named_tokens=_named_tokens(config),
            _controls=controls,
            _original=original,
            _text=_backend(text_spec, directory),
            _continuation=None if continuation_spec is None else _backend(continuation_spec, directory),
            _files=files,
        )

    @property
    def control_names(self) -> tuple[str, ...]:
        """The control tokens, by name."""
        return tuple(self._controls)

    @property
    def digest(self) -> str:
        """Names the tokenizer by its files (sha256)."""
        names = [f"{name} {sha256_bytes(content)}" for name, content in sorted(self._files.items())]
        return sha256_bytes("\n".join(names).encode())

    def save(self, directory: Path) -> None:
        """Write the files as they were read, byte for byte."""
        for name, content in self._files.items():
            write_bytes(directory / name, content)

    def encode(self, text: str, *, follows_text: bool = False) -> list[int]:
        """Ids of plain text; whatever it spells, none of them is a control token.

        Some tokenizers (Llama, Vicuna) put a dummy space before every text. `follows_text` says that `text`
        continues earlier text of the same run: then a space at its start takes the place of the dummy one.
        Without a space at its start it is encoded as a text of its own, as LLaVA does for the text around pictures.
        """
        continues = follows_text and text.startswith(" ") and self._continuation is not None
        backend = self._continuation if continues and self._continuation is not None else self._text
        _check_unicode(text)
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        if not self.control_ids.isdisjoint(ids):
            found = [self._original.id_to_token(i) for i in ids if i in self.control_ids]
            raise RenderError(
                f"plain text was encoded to control tokens {found}: {text!r}; report the tokenizer as a bug"
            )
        return ids

    def control(self, token: str) -> int:
        """Id of a control token, by its exact name."""
        if token in self._controls:
            return self._controls[token]
        close = difflib.get_close_matches(token, self._controls, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        known = ", ".join(repr(name) for name in list(self._controls)[:12]) or "none"
        raise RenderError(
            f"the tokenizer has no control token {token!r}{hint}; it has {len(self._controls)}: {known}; "
            "choose a template that fits this tokenizer"
        )

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """Text of `ids`; control tokens are left out, or written by name with `keep_control`."""
        pieces: list[str] = []
        for is_control, run in groupby(ids, key=self.control_ids.__contains__):
            if not is_control:
                pieces.append(self.decode_text(list(run)))
            elif keep_control:
                pieces += (self._original.id_to_token(i) or "" for i in run)
        return "".join(pieces)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of one run of ids without control tokens."""
        return self._original.decode(ids, skip_special_tokens=False)


class StreamDecoder:
    """Text of a growing sequence of ids; half a UTF-8 character is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start an answer."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def feed(self, token: int) -> str:
        """The text that became certain with `token`; a control token ends the run and is not shown."""
        if token in self._tokenizer.control_ids:
            return self.flush()
        self._ids.append(token)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        # Only the ids just shown are kept, as the context that decides about spaces; the cost per id stays constant.
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text

    def flush(self) -> str:
        """What is still held back; the next id starts a new run."""
        text = self._new_text()
        self._ids, self._shown = [], 0
        return text

    def _new_text(self) -> str:
        shown = self._tokenizer.decode_text(self._ids[: self._shown])
        return self._tokenizer.decode_text(self._ids)[len(shown) :]


def _read_files(directory: Path) -> dict[str, bytes]:
    if not (directory / TOKENIZER_FILE).is_file():
        found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        listing = (
            f"the folder has {', '.join(found[:8]) or 'no files'}" if directory.is_dir() else "there is no such folder"
        )
        raise CheckpointError(
            f"{directory}: {TOKENIZER_FILE} is missing ({listing}); opsin reads fast tokenizers only: "
            "save one with transformers' AutoTokenizer.save_pretrained"
        )
    names = [name for name in (TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE) if (directory / name).is_file()]
    return {name: (directory / name).read_bytes() for name in names}


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def _backend(spec: Spec, directory: Path) -> Backend:
    try:
        return Backend.from_str(json.dumps(spec, ensure_ascii=False))
    except Exception as error:
        # The library raises bare Exception, and only that, for every file it cannot use.
        if type(error) is not Exception:
            raise
        raise CheckpointError(f"{directory / TOKENIZER_FILE}: the tokenizers library refuses it: {error}") from error


def _named_token(config: dict[str, Any], name: str) -> str | None:
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else str(content)


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    found = {name: _named_token(config, name) for name in names}
    return {name: token for name, token in found.items() if token is not None}


def _chat_template(files: dict[str, bytes], config: dict[str, Any]) -> str | None:
    if TEMPLATE_FILE in files:
        return files[TEMPLATE_FILE].decode("utf-8", errors="replace")
    value = config.get("chat_template")
    if isinstance(value, list):  # several by name; transformers uses the one called default
        value = next((v.get("template") for v in value if isinstance(v, dict) and v.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _every_id(spec: Spec) -> dict[str, int]:
    return vocab_ids(spec["model"]) | {t["content"]: int(t["id"]) for t in spec.get("added_tokens", ())}


def _id_of(token: str | None, name: str, every_id: dict[str, int], directory: Path) -> int | None:
    if token is None:
        return None
    if token not in every_id:
        raise CheckpointError(
            f"{directory}: {CONFIG_FILE} names {name} {token!r}, which {TOKENIZER_FILE} does not have; "
            "the two files belong to different tokenizers"
        )
    return every_id[token]


def _opening_ids(
    config: dict[str, Any], bos_id: int | None, original: Backend, control_ids: frozenset[int]
) -> tuple[int, ...]:
    adds_bos = config.get("add_bos_token")
    if isinstance(adds_bos, bool):  # transformers lets this setting overrule the post-processor of tokenizer.json
        return (bos_id,) if adds_bos and bos_id is not None else ()
    return tuple(takewhile(control_ids.__contains__, original.encode("a").ids))


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        at = error.start
        raise RenderError(
            f"character {at} of the text is half a character (lone surrogate U+{ord(text[at]):04X}), "
            f"near {text[max(0, at - 20) : at]!r}: remove it"
        ) from error
