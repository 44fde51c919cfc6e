"""How long to keep the card of an agent that waits on a tool.

A card held for τ seconds saves its re-prefill where the tool returns by then, and fills the store
until one of the two. With T the tool's duration, F its distribution as observed, and

    gain(τ) = F(τ) · benefit − cost · E[min(T, τ)]

the time to live is τ* = argmax gain(τ) (Continuum, arXiv:2511.02230). Between two observed
durations the first term stands still and the second grows, so τ* is 0 or one of them.

*benefit* is ``saved_ms``: what re-reading costs more than injecting. *cost* is bytes × the price of
a byte-second. That price is the multiplier of the store's limit: to save the most time with no more
than ``limit`` bytes held on average, every card is held as if a byte-second cost λ, the least λ at
which they fit. By Little's law the bytes held are, summed over tools, arrivals per second ×
mean(bytes · min(T, τ*(λ))); they fall as λ grows, so λ is found by bisection, and is 0 where
everything fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..card.errors import QKVShareError

Floats = npt.NDArray[np.float64]
State = Literal["foreground", "background"]


class Wait(NamedTuple):
    """One tool call of an agent: plain numbers, for the store to keep."""

    began: float  # s, on any clock that goes on
    seconds: float  # how long until the agent came back; inf: never
    saved_ms: float
    bytes: int


class Curve(NamedTuple):
    """What holding a card until each of the durations of a tool brings and takes."""

    until: Floats  # [k] s, ascending: 0 and the finite durations
    slopes: Floats  # [k] 1 / s, steepest from here on

    def best(self, benefit: Floats, cost: Floats) -> Floats:
        """τ* of each ``benefit [cards]`` (ms) at ``cost [cards]`` (ms per s): ``[cards]`` s, the
        shortest if several are best."""
        falls = np.minimum.accumulate(self.slopes)
        least = np.divide(cost, benefit, out=np.full(benefit.shape, np.inf), where=benefit > 0)
        found: Floats = self.until[np.searchsorted(-falls, -least)]
        return found


@lru_cache(maxsize=256)
def curve(durations: tuple[float, ...], returns: float = 1.0) -> Curve:
    """``durations`` in s, ``inf`` for an agent that never came back; ``returns``: the chance that
    this one does what they did, and not rather stays away.

    A point for each duration t: held, n · E[min(T, t)], to the right, and back, n · P(T ≤ t), up.
    Raises `QKVShareError` for a duration below 0, or a chance that is none.
    """
    ordered = np.sort(np.array(durations, np.float64))
    if not (0 <= returns <= 1 and (ordered >= 0).all()):
        raise QKVShareError(
            f"durations {durations} and chance {returns} found, none below 0 and a chance "
            "from 0 to 1 expected; give seconds, and inf for an agent that never came back"
        )
    until = np.append(0.0, ordered[np.isfinite(ordered)])
    back = returns * np.arange(len(until))
    held = returns * np.cumsum(until) + (len(ordered) - back) * until
    last = np.append(until[1:] > until[:-1], True)  # of equal durations
    return Curve(until[last], np.array(_steepest(held[last].tolist(), back[last].tolist())))


def _steepest(held: list[float], back: list[float]) -> list[float]:
    """The steepest slope from every point to one right of it, 0 for the last: O(n), along the upper
    hull of the points to the right."""
    last = len(held) - 1
    slopes, hull = [-1.0] * (last + 1), [last]
    for here in range(last - 1, -1, -1):
        while True:
            top = hull[-1]
            slope = (back[top] - back[here]) / (held[top] - held[here])
            if slope > slopes[top]:
                break
            hull.pop()
        slopes[here] = slope
        hull.append(here)
    return [*slopes[:last], 0.0]


@dataclass(frozen=True)
class Ttl:
    """Learnt per tool from the waits seen.

    A tool with fewer than ``enough`` waits is taken for one of all tools (their waits together).
    With fewer than ``enough`` waits in all, a card is held until holding has cost what it saves:
    without knowledge at most twice the cost of knowing (ski rental; Karlin et al., 1988).
    An agent in the background comes back with ``background`` times the chance, so its card is worth
    less (the states of an app are MobiLoRA's, ACL 2025).
    """

    waits: Mapping[str, tuple[Wait, ...]] = field(default_factory=dict)
    price: float = 0.0  # ms per byte-second
    last: int = 128  # waits remembered for each tool
    enough: int = 8
    background: float = 0.5

    def priced(self, limit: int, now: float) -> Ttl:
        """With the price at which the waits seen would have held ``limit`` bytes on average.

        ``now`` in s, on the clock of `Wait.began`; better every hundred waits than at each.
        """
        demands = [
            HeldBytes.of(kept, curve(self.durations(tool)), now)
            for tool, kept in self.waits.items()
            if now > kept[0].began
        ]
        high = max((demand.most() for demand in demands), default=0.0)
        low = high * 1e-6
        if sum(demand.bytes_at(low) for demand in demands) <= limit:
            return replace(self, price=0.0)
        for _ in range(16):
            middle = math.sqrt(low * high)
            fits = sum(demand.bytes_at(middle) for demand in demands) <= limit
            low, high = (low, middle) if fits else (middle, high)
        return replace(self, price=high)

    def ttl(self, tool: str, saved_ms: float, bytes: int, state: State = "foreground") -> float:
        """Seconds to keep a card whose agent calls ``tool`` now; inf while bytes cost nothing."""
        if self.price == 0:
            return math.inf if saved_ms > 0 else 0.0
        cost = self.price * bytes
        seen = self.durations(tool)
        if len(seen) < self.enough:
            return self.chance(state) * max(saved_ms, 0.0) / cost
        found = curve(seen, self.chance(state))
        return float(found.best(np.array([saved_ms]), np.array([cost]))[0])

    def durations(self, tool: str) -> tuple[float, ...]:
        """Seconds of the waits that stand for ``tool``."""
        own = self.waits.get(tool, ())
        if len(own) >= self.enough:
            return tuple(wait.seconds for wait in own)
        return tuple(wait.seconds for kept in self.waits.values() for wait in kept)

    def chance(self, state: State) -> float:
        """That an agent in ``state`` comes back, in parts of one in the foreground."""
        return self.background if state == "background" else 1.0


class HeldBytes(NamedTuple):
    """What the waits of one tool ask of the store."""

    curve: Curve
    saved_ms: Floats  # [waits]
    bytes: Floats  # [waits]
    seconds: Floats  # [waits]
    over: float  # s, in which they came

    @classmethod
    def of(cls, waits: Sequence[Wait], curve: Curve, now: float) -> HeldBytes:
        """Of ``waits`` since the first of them."""
        _, seconds, saved, sizes = np.array(waits, np.float64).T
        return cls(curve, saved, sizes, seconds, now - waits[0].began)

    def most(self) -> float:
        """A price, in ms per byte-second, at which none of them is held."""
        return float((self.saved_ms / self.bytes).max() * self.curve.slopes[0])

    def bytes_at(self, price: float) -> float:
        """Held on average if a byte-second costs ``price`` ms."""
        until = self.curve.best(self.saved_ms, self.bytes * price)
        return float((self.bytes * np.minimum(self.seconds, until)).sum() / self.over)
