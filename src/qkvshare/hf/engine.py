"""What `qkvshare.card.engine` finds: cards and models of transformers."""

from __future__ import annotations

from .capture.extend import extend as extend
from .inject.inject import inject as inputs

__all__ = ["extend", "inputs"]
