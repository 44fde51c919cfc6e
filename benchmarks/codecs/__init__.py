"""The codecs that others ship, to compare ours with; registered as a third party's would be."""

from __future__ import annotations

from .kivi import Kivi
from .uniform import Uniform

__all__ = ["Kivi", "Uniform"]
