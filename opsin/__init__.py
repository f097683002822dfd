"""opsin: multimodal instruction tuning, from pictures to a vision-language model of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsin.checkpoint.load import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`opsin.load`, imported when it is first asked for: it needs torch, and `import opsin` must not."""
    if name == "load":
        from opsin.checkpoint.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
