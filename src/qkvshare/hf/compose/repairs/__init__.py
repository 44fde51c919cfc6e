"""Repair: which tokens of a composition are computed anew, a strategy a file."""

from .all import All
from .anchored import Anchored
from .base import Repair
from .budget import Budget
from .deviation import Deviation
from .first import First
from .narrowed import Narrowed
from .none import Nothing

__all__ = ["All", "Anchored", "Budget", "Deviation", "First", "Narrowed", "Nothing", "Repair"]
