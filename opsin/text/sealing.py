"""Turn a `tokenizer.json` into one whose control tokens no text can reach.

The functions here take and return the parsed JSON and never change their argument.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Spec = dict[str, Any]
"""The parsed content of a `tokenizer.json`, or a part of it."""


def control_tokens(spec: Spec, named: Collection[str]) -> dict[str, int]:
    """Content -> id of the tokens that only a template may produce.

    These are the added tokens that are special, the added tokens that are not pure whitespace (tool marks and
    the like), and the tokens of `named` (bos and eos). The model's unknown token is what it says *about* text,
    so it counts only if it doubles as one of `named`.
    """
    control = {token["content"]: int(token["id"]) for token in spec.get("added_tokens", ()) if _is_control(token)}
    vocab = vocab_ids(spec["model"])
    control |= {content: vocab[content] for content in named if content in vocab}
    unknown = unknown_token(spec["model"])
    if unknown is not None and unknown not in named:
        control.pop(unknown, None)
    return control


def sealed(spec: Spec, control: dict[str, int]) -> Spec:
    """The same tokenizer for text alone: same ids, but no text encodes to an id of `control`."""
    added = [token for token in spec.get("added_tokens", ()) if not _is_control(token)]
    beyond = {t["content"]: int(t["id"]) for t in spec.get("added_tokens", ())}
    return {
        **spec,
        "added_tokens": added,
        "model": _sealed_model(spec["model"], control, beyond),
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def without_dummy_prefix(spec: Spec) -> Spec | None:
    """The tokenizer that puts no space before the text, or None if it does not put one there anyway."""
    normalizer = _unprefixed(spec.get("normalizer"))
    pre_tokenizer = _unprefixed(spec.get("pre_tokenizer"))
    if normalizer == spec.get("normalizer") and pre_tokenizer == spec.get("pre_tokenizer"):
        return None
    return {**spec, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}


def vocab_ids(model: Spec) -> dict[str, int]:
    """Piece -> id of a model's own vocabulary (Unigram stores a list of piece and score)."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {piece: index for index, (piece, _) in enumerate(vocab)}


def unknown_token(model: Spec) -> str | None:
    """The piece that a model gives for text it has no piece for."""
    if isinstance(model["vocab"], list):
        index = model.get("unk_id")
        return None if index is None else str(model["vocab"][index][0])
    unknown = model.get("unk_token")
    return None if unknown is None else str(unknown)


def _is_control(token: Spec) -> bool:
    return bool(token["special"]) or bool(token["content"].strip())


def _sealed_model(model: Spec, control: dict[str, int], added: dict[str, int]) -> Spec:
    # Removing an entry would move the ids behind it, so the entry keeps its id under a name that no text can spell:
    # the model may look up whole words (WordLevel, Unigram, BPE with ignore_merges), hence the random part.
    salt = secrets.token_hex(16)
    names = {content: f"\0control {index} {salt}" for content, index in control.items()}
    missing = {content: index for content, index in added.items() if content not in vocab_ids(model)}
    if isinstance(model["vocab"], list):
        return {**model, "vocab": _sealed_pieces(model["vocab"], names, missing, salt)}
    vocab = {names.get(piece, piece): index for piece, index in (model["vocab"] | missing).items()}
    if "merges" not in model:
        return {**model, "vocab": vocab}
    prefix = model.get("continuing_subword_prefix") or ""
    return {**model, "vocab": vocab, "merges": _merges_without(model["merges"], control, prefix)}


def _sealed_pieces(
    vocab: list[list[Any]], names: dict[str, str], missing: dict[str, int], salt: str
) -> list[list[Any]]:
    # The lowest score there is: a lower one would change what an unknown character costs.
    lowest = min((score for _, score in vocab), default=0.0)
    pieces = [[names.get(piece, piece), score] for piece, score in vocab]
    for content, index in sorted(missing.items(), key=lambda item: item[1]):
        pieces += [[f"\0gap {gap} {salt}", lowest] for gap in range(len(pieces), index)]
        pieces.append([names.get(content, content), lowest])
    return pieces


def _merges_without(merges: Iterable[Any], control: Collection[str], prefix: str) -> list[list[str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [
        [left, right]
        for left, right in pairs
        if not {left, right, left + right.removeprefix(prefix)}.intersection(control)
    ]


def _unprefixed(component: Spec | None) -> Spec | None:
    if component is None:
        return None
    match component["type"]:
        case "Prepend":
            return None
        case "Metaspace":
            return (
                {**component, "prepend_scheme": "never", "add_prefix_space": False}
                if _prefixes(component)
                else component
            )
        case "ByteLevel":
            return {**component, "add_prefix_space": False}
        case "Sequence":
            key = "normalizers" if "normalizers" in component else "pretokenizers"
            parts = [_unprefixed(part) for part in component[key]]
            return {**component, key: [part for part in parts if part is not None]}
        case _:
            return component


def _prefixes(metaspace: Spec) -> bool:
    return bool(metaspace.get("prepend_scheme", "always") != "never" and metaspace.get("add_prefix_space", True))
