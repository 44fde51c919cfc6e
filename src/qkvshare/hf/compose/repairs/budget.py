"""As much repair as the receiver has time for."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch

from ..composition import Composition
from .base import Repair
from .first import First

_PIECE = 128  # tokens that are computed between two looks at the clock
_LOOK = 2  # layers that are computed for all tokens to choose among them


@dataclass(frozen=True)
class Budget(Repair):
    """`First`, then tokens by `Composition.deviation` until ``milliseconds`` are over.

    What comes next is done only if it is likely to end in time, by what the steps before it have
    taken on this machine. Where all tokens fit, all are computed, which is exact. The text between
    parts, and the first tokens, are computed in any case.
    """

    milliseconds: float

    def repair(self, composition: Composition) -> None:
        """As many as fit."""
        end = perf_counter() + self.milliseconds / 1000
        layers, before = len(composition.buffers), perf_counter()
        First().repair(composition)
        count = int(composition.anew.sum()) + len(composition.text)
        changed = composition.changed
        left = changed[~composition.anew[changed]]
        if not count or not len(left):
            return
        # Few tokens take longer each than many, so this is rather too much.
        each = (perf_counter() - before) / (count * layers)
        if perf_counter() + each * _LOOK * len(changed) > end:
            return
        before = perf_counter()
        order = composition.deviation(min(_LOOK, layers)).argsort(descending=True)
        each = (perf_counter() - before) / (_LOOK * len(changed))
        if perf_counter() + each * layers * len(changed) <= end:
            composition.compute(changed)
            return
        order = order[~composition.anew[changed[order]]]
        took = each * layers * _PIECE
        for some in torch.split(order, _PIECE):
            before = perf_counter()
            if before + took > end:
                return
            composition.compute(changed[some].sort().values)
            took = max(took, perf_counter() - before)
