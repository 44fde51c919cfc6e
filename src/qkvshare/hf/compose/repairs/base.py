"""What a strategy of repair is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..composition import Composition


class Repair(ABC):
    """Chooses tokens that are computed anew, where they stand behind something else now."""

    @abstractmethod
    def repair(self, composition: Composition) -> None:
        """Compute the composition's text, and some of its `Composition.changed` tokens."""
