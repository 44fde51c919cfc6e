"""Who stays in a full store: the policies that `ttl.py` compares.

The store's price λ of a byte-second (`qkvshare.store.ttl`) read the other way round: a card that
has waited ``a`` seconds is worth holding while

    worth(a) = max over τ of  saved · P(T ≤ a + τ | T > a) ÷ (bytes · E[min(T − a, τ) | T > a])

is above λ (an index after Gittins). So a full store can evict the card of least worth first, and
needs no price for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from qkvshare.store.ttl import Floats, State, Ttl, Wait, curve

from .ttl_trace import Call

GIVE_UP = 900.0  # s, after which an agent counts as one that does not come back
_REPRICE = 128  # waits


class Policy:
    """Never expires, and the oldest goes first: least recently used."""

    refuses = False  # rather than evict

    def ttl(self, call: Call) -> float:
        """Seconds to hold the card; 0: not at all."""
        return math.inf

    def worth(self, calls: list[Call], now: float) -> Floats:
        """``[calls]``; the least goes first."""
        return np.array([call.at for call in calls])

    def returned(self, call: Call) -> None:
        """The tool of ``call`` has returned."""

    def gave_up(self, call: Call) -> None:
        """The tool of ``call`` has not returned for `GIVE_UP` seconds."""

    def evicted(self, worth: float) -> None:
        """A card of that worth went for want of room."""


@dataclass
class Fixed(Policy):
    """One time to live for all; the oldest goes first."""

    seconds: float

    def ttl(self, call: Call) -> float:
        """The same."""
        return self.seconds


class KeepForever(Policy):
    """What is in stays in; a full store refuses."""

    refuses = True


@dataclass
class Gdsf(Policy):
    """Greedy-Dual-Size-Frequency (Cherkasova, 1998): saved ms per byte, times uses, on top of a
    clock that moves up to what was evicted last.

    With ``grace`` each turn's card is a new one, and those put less than so many seconds ago go
    last. Without, the turns of an agent count as uses.
    """

    grace: float = 0.0
    clock: float = 0.0
    put: dict[Call, float] = field(default_factory=dict)

    def worth(self, calls: list[Call], now: float) -> Floats:
        """As of when each was put."""
        for call in calls:
            if call not in self.put:
                uses = 1 if self.grace else call.turn
                self.put[call] = self.clock + uses * call.saved_ms / call.bytes
        spared = [call.at if call.at > now - self.grace else 0.0 for call in calls]
        return np.array([self.put[call] + 1e9 * at for call, at in zip(calls, spared, strict=True)])

    def evicted(self, worth: float) -> None:
        """The clock."""
        self.clock = max(self.clock, worth if worth < 1e9 else 0.0)


def observed(policy: Ttl, tool: str, wait: Wait) -> Ttl:
    """``policy`` with one more wait of ``tool``; its oldest is forgotten beyond ``last``."""
    kept = (*policy.waits.get(tool, ()), wait)[-policy.last :]
    return replace(policy, waits={**policy.waits, tool: kept})


def rate(durations: tuple[float, ...], returns: float, waited: Floats) -> Floats:
    """P ÷ E of the index for cards that have ``waited [cards]`` s: ``[cards]``, 1 / s.

    It stands still between two durations, and is 0 beyond the longest.
    """
    found = curve(durations, returns)
    slopes: Floats = found.slopes[np.searchsorted(found.until, waited, "right") - 1]
    return slopes


def worth(
    policy: Ttl,
    tool: str,
    saved_ms: npt.ArrayLike,
    bytes: npt.ArrayLike,
    waited: npt.ArrayLike,
    state: State = "foreground",
) -> Floats:
    """ms per byte-second from now on, of cards that have ``waited [cards]`` s for ``tool``.

    The least goes first. Without knowledge, as if the agent came back in as long again.
    """
    age, seen = np.atleast_1d(np.asarray(waited, np.float64)), policy.durations(tool)
    chance = policy.chance(state)
    if len(seen) < policy.enough:
        slopes = chance / np.maximum(age, 1e-3)
    else:
        slopes = rate(seen, chance, age)
    return np.asarray(saved_ms, np.float64) / np.asarray(bytes, np.float64) * slopes


@dataclass
class LearnedTtl(Policy):
    """`qkvshare.store.ttl`, which knows nothing at first."""

    limit: int
    expires: bool = True
    uses_state: bool = False
    policy: Ttl = field(default_factory=Ttl)
    seen: int = 0

    def ttl(self, call: Call) -> float:
        """τ*, if cards expire at all."""
        if not self.expires:
            return math.inf
        state = self._state(call)
        return self.policy.ttl(call.tool, call.saved_ms, call.bytes, state)

    def worth(self, calls: list[Call], now: float) -> Floats:
        """The index of each now."""
        found = np.empty(len(calls))
        groups: dict[tuple[str, State], list[int]] = {}
        for at, call in enumerate(calls):
            state = self._state(call)
            groups.setdefault((call.tool, state), []).append(at)
        for (tool, state), members in groups.items():
            of = [calls[at] for at in members]
            found[members] = worth(
                self.policy,
                tool,
                [call.saved_ms for call in of],
                [call.bytes for call in of],
                [now - call.at for call in of],
                state,
            )
        return found

    def returned(self, call: Call) -> None:
        """Learn it."""
        if call.seconds <= GIVE_UP:
            self._learn(call, call.seconds, call.at + call.seconds)

    def gave_up(self, call: Call) -> None:
        """Learn it as never."""
        self._learn(call, math.inf, call.at + GIVE_UP)

    def _state(self, call: Call) -> State:
        return call.state if self.uses_state else "foreground"

    def _learn(self, call: Call, seconds: float, now: float) -> None:
        wait = Wait(call.at, seconds, call.saved_ms, call.bytes)
        self.policy = observed(self.policy, call.tool, wait)
        self.seen += 1
        if self.expires and self.seen % _REPRICE == 0:
            self.policy = self.policy.priced(self.limit, now)


class Oracle(Policy):
    """Knows when each agent comes back: the least saved per byte-second still to hold goes first.

    Greedy, so not the very best; it holds nothing for those who do not come back.
    """

    def ttl(self, call: Call) -> float:
        """As long as it takes."""
        return call.seconds if math.isfinite(call.seconds) else 0.0

    def worth(self, calls: list[Call], now: float) -> Floats:
        """By what is left."""
        left = [max(call.at + call.seconds - now, 1e-6) for call in calls]
        return np.array([call.saved_ms / call.bytes for call in calls]) / left
