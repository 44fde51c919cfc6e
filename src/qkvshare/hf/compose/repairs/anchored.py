"""Parts shifted by what others of their kind have become: after KVCOMM (arXiv:2510.12872)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..anchors import Anchors
from ..composition import Composition
from .base import Repair
from .first import First


@dataclass(frozen=True)
class Anchored(Repair):
    """All tokens are shifted by ``anchors``, and those that ``then`` chooses are computed."""

    anchors: Anchors
    then: Repair = field(default_factory=First)

    def repair(self, composition: Composition) -> None:
        """Raises as `Anchors.shift`."""
        self.anchors.shift(composition)
        self.then.repair(composition)
