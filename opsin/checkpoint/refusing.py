"""Other people's values, kept from costing time or memory, and from ending in a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError

from opsin.checkpoint.hub_names import LANGUAGE, TOWER, VIT
from opsin.core.errors import CheckpointError, ModelError
from opsin.model.config import ModelConfig
from opsin.model.encoder_values import NativeVitEncoder, TowerEncoder

MAX_WIDTH = 131_072
MAX_CONNECTOR = 16_384
"""Any number of a connector or a fusion: widths, latents, layers."""

MAX_POSITIONS = 1_000_000
"""Position embeddings of a tower: a square of 1000 x 1000 patches."""

SPARE_LAYERS = 64
"""A config may name so many layers more than the weights have, and gets to hear which tensors are missing."""

LAYER = re.compile(
    rf"({re.escape(LANGUAGE)}layers|{re.escape(TOWER)}encoder\.layers?|{re.escape(VIT)}blocks)\.(\d{{1,9}})\."
)
MAX_REASON = 400


@contextmanager
def refusing(source: object) -> Iterator[None]:
    """Whatever goes wrong inside, in opsin or in transformers, becomes an error that names the file.

    Raises:
        ModelError: parts do not fit together.
        CheckpointError: a value cannot be used at all.
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error) if str(source) in str(error) else f"{source}: {error}") from None
    except ValidationError as error:
        raise CheckpointError(f"{source}: {problems_of(error)}") from None
    except (
        *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
        *(NotImplementedError, StrictDataclassError, OSError, ImportError),
    ) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise CheckpointError(f"{source}: a value in it cannot be used ({type(error).__name__}: {reason})") from None


def problems_of(error: ValidationError) -> str:
    """Every key that is out of bounds or of the wrong type."""
    problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {str(e['input'])[:60]})" for e in error.errors()]
    return "; ".join(problem.removeprefix(": ") for problem in problems)


def check_cost(config: ModelConfig, names: Iterable[str], source: object) -> None:
    """Refuse, before a model is built, a config that is much larger than the weights; `names` are opsin's.

    Raises:
        ModelError: saying what is too large.
    """
    encoder, language = config.encoder, config.language
    found = {LANGUAGE: 0, TOWER: 0, VIT: 0}
    for name in names:
        if layer := LAYER.match(name):
            prefix = next(prefix for prefix in found if name.startswith(prefix))
            found[prefix] = max(found[prefix], int(layer[2]) + 1)
    layers = {LANGUAGE: language.layers}
    widths = {"language.hidden_size": int(language.facts["hidden_size"]), "language.head_dim": language.head_width}
    if isinstance(encoder, NativeVitEncoder):
        layers[VIT], widths["encoder.embed_dim"] = encoder.depth, encoder.width
    if isinstance(encoder, TowerEncoder):
        layers[TOWER] = int(encoder.facts.get("num_hidden_layers", 12))  # 12: all published defaults
        widths["encoder.hidden_size"] = encoder.width
        side = encoder.image_size // encoder.patch_size
        if side * side > MAX_POSITIONS:
            raise ModelError(f"{source}: {side}x{side} patches; the limit is {MAX_POSITIONS:,}")
    limits = [(name, width, MAX_WIDTH) for name, width in widths.items()]
    for part, value in (("connector", config.connector), ("fusion", config.fusion)):
        numbers = {key: number for key, number in value if isinstance(number, int)}
        limits += [(f"{part}.{key}", max(1, number), MAX_CONNECTOR) for key, number in numbers.items()]
    for name, number, limit in limits:
        if not 1 <= number <= limit:
            raise ModelError(f"{source}: {name} is {number:,}; it must be from 1 to {limit:,}")
    for prefix, count in layers.items():
        if count > found[prefix] + SPARE_LAYERS:
            raise ModelError(f"{source}: {count:,} layers of {prefix[:-1]}, but the weights have {found[prefix]:,}")
