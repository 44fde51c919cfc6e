"""Hand the state of one LLM agent to another.

>>> card = qkvshare.capture(model, tokenizer, "a long document …")
>>> card.save("document.card")
>>> card = qkvshare.CacheCard.load("document.card")
>>> model.generate(**qkvshare.inject(model, card, "a question", tokenizer=tokenizer))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .card import CacheCard
from .card.errors import QKVShareError

if TYPE_CHECKING:
    from .codecs import Packed, Raw, Transform, Uniform, trim
    from .hf.capture.capture import capture
    from .hf.inject.inject import inject
    from .hf.model.identity import identify

__all__ = [
    "CacheCard",
    "Packed",
    "QKVShareError",
    "Raw",
    "Transform",
    "Uniform",
    "capture",
    "identify",
    "inject",
    "trim",
]

__version__ = "0.1.0"

# Looking at a card needs neither torch nor transformers; importing them takes seconds.
_LAZY = {
    "Packed": "codecs",
    "Raw": "codecs",
    "Transform": "codecs",
    "Uniform": "codecs",
    "capture": "hf.capture.capture",
    "identify": "hf.model.identity",
    "inject": "hf.inject.inject",
    "trim": "codecs",
}


def __getattr__(name: str) -> Any:
    """Import the parts that need a model only when they are asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
