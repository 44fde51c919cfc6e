"""Hand the state of one LLM agent to another.

>>> card = qkvshare.capture(model, tokenizer, "a long document …")
>>> card.save("document.card")
>>> card = qkvshare.CacheCard.load("document.card")
>>> model.generate(**card.inputs(model, tokenizer, "a question"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .card import CacheCard, Key, Signer, Span
from .card.errors import (
    AgentError,
    BudgetError,
    BusyError,
    CancelledError,
    CaptureError,
    CardDigestError,
    CardError,
    CardExpiredError,
    CardFetchError,
    CardFormatError,
    CardKeyError,
    CardNotFoundError,
    CardSealedError,
    CardSignatureError,
    CardTagError,
    CardThinError,
    CardVersionError,
    CardWriteError,
    CodecError,
    ContextLengthExceededError,
    IdentityError,
    ModelNotFoundError,
    OutputError,
    OverdueError,
    ProfileError,
    PromptError,
    QKVShareError,
    SecretError,
    ServeError,
    StoreError,
    StoreFullError,
    UnsupportedModelError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from .codecs import Packed, Raw, Transform, trim
    from .hf.attention import attention
    from .hf.capture.capture import capture, capture_cache
    from .hf.capture.saved import load_cache, save_cache
    from .hf.compose.compose import compose
    from .hf.inject.batch import batch_inputs
    from .hf.model.identity import identify
    from .hf.session.session import Session
    from .store import Store

__all__ = [
    "AgentError",
    "BudgetError",
    "BusyError",
    "CacheCard",
    "CancelledError",
    "CaptureError",
    "CardDigestError",
    "CardError",
    "CardExpiredError",
    "CardFetchError",
    "CardFormatError",
    "CardKeyError",
    "CardNotFoundError",
    "CardSealedError",
    "CardSignatureError",
    "CardTagError",
    "CardThinError",
    "CardVersionError",
    "CardWriteError",
    "CodecError",
    "ContextLengthExceededError",
    "IdentityError",
    "Key",
    "ModelNotFoundError",
    "OutputError",
    "OverdueError",
    "Packed",
    "ProfileError",
    "PromptError",
    "QKVShareError",
    "Raw",
    "SecretError",
    "ServeError",
    "Session",
    "Signer",
    "Span",
    "Store",
    "StoreError",
    "StoreFullError",
    "Transform",
    "UnsupportedModelError",
    "UnsupportedParameterError",
    "attention",
    "batch_inputs",
    "capture",
    "capture_cache",
    "compose",
    "identify",
    "load_cache",
    "save_cache",
    "trim",
]

__version__ = "0.1.0"

# Looking at a card needs neither torch nor transformers, which take seconds to import.
_LAZY = {
    "Packed": "codecs",
    "Raw": "codecs",
    "Session": "hf.session.session",
    "Store": "store",
    "Transform": "codecs",
    "attention": "hf.attention",
    "batch_inputs": "hf.inject.batch",
    "capture": "hf.capture.capture",
    "capture_cache": "hf.capture.capture",
    "compose": "hf.compose.compose",
    "identify": "hf.model.identity",
    "load_cache": "hf.capture.saved",
    "save_cache": "hf.capture.saved",
    "trim": "codecs",
}


def __getattr__(name: str) -> Any:
    """Import what needs a model only when it is asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
