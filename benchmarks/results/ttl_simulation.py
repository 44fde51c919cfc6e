"""A store with a limit, and what its policy makes agents pay; for `ttl.py`."""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np

from .ttl_policies import GIVE_UP, Policy
from .ttl_trace import Call


class Replay(NamedTuple):
    """Of one policy on one trace."""

    paid_ms: float  # to first tokens, of all calls that came back
    paid_late_ms: float  # the same, of calls made in the second half
    foreground_ms: float  # the same, of agents in the foreground
    returns: int
    hits: int
    evicted: int  # needed again, and gone for want of room
    expired: int  # needed again, and past its time
    refused: int  # needed again, and never taken
    byte_seconds: float
    peak: int  # bytes


def simulate(calls: list[Call], policy: Policy, limit: int, middle: float = math.inf) -> Replay:
    """Every call puts a card into a store of ``limit`` bytes; every return looks for it.

    The calls happen when they happen: a miss does not delay its agent, so that all policies see the
    same trace. A card that is found leaves, since its agent puts a longer one next.
    """
    held: dict[int, Call] = {}
    gone: dict[int, str] = {}
    expiries: list[tuple[float, int]] = []
    paid, late, foreground, hits, area, used, peak = 0.0, 0.0, 0.0, 0, 0.0, 0, 0

    def leave(number: int, now: float, why: str) -> None:
        nonlocal area, used
        call = held.pop(number)
        area, used = area + call.bytes * (now - call.at), used - call.bytes
        gone[number] = why

    events = _events(calls)
    for now, kind, number in events:
        call = calls[number]
        while expiries and expiries[0][0] < now:
            at, old = heapq.heappop(expiries)
            if old in held:
                leave(old, at, "expired")
        if kind == 0:
            hit = number in held
            if hit:
                leave(number, now, "hit")
            cost = call.card_ms if hit else call.again_ms
            paid, hits = paid + cost, hits + hit
            late += cost if call.at > middle else 0.0
            foreground += cost if call.state == "foreground" else 0.0
            policy.returned(call)
        elif kind == 1:
            policy.gave_up(call)
        else:
            seconds = policy.ttl(call)
            out = None if seconds <= 0 else _victims(held, call, number, policy, limit, now)
            if out is None:
                gone[number] = "refused"
                continue
            for victim in out:
                leave(victim, now, "evicted")
            held[number], used = call, used + call.bytes
            peak = max(peak, used)
            if math.isfinite(seconds):
                heapq.heappush(expiries, (now + seconds, number))
    end = events[-1][0]
    area += sum(call.bytes * (end - call.at) for call in held.values())
    why = [gone[number] for number, call in enumerate(calls) if math.isfinite(call.seconds)]
    evicted, expired, refused = (why.count(cause) for cause in ("evicted", "expired", "refused"))
    return Replay(paid, late, foreground, len(why), hits, evicted, expired, refused, area, peak)


def _events(calls: list[Call]) -> list[tuple[float, int, int]]:
    """(s, 0 return | 1 give up | 2 put, call) in order."""
    found = [(call.at, 2, number) for number, call in enumerate(calls)]
    for number, call in enumerate(calls):
        if math.isfinite(call.seconds):
            found.append((call.at + call.seconds, 0, number))
        if call.seconds > GIVE_UP:
            found.append((call.at + GIVE_UP, 1, number))
    return sorted(found)


def _victims(
    held: dict[int, Call], call: Call, number: int, policy: Policy, limit: int, now: float
) -> list[int] | None:
    """Whom to evict so that ``call`` fits; None: it is the one that does not."""
    over = sum(other.bytes for other in held.values()) + call.bytes - limit
    if over <= 0:
        return []
    if policy.refuses or call.bytes > limit:
        return None
    numbers = [*held, number]
    worth = policy.worth([*held.values(), call], now)
    out = []
    for at in np.argsort(worth, kind="stable"):
        policy.evicted(float(worth[at]))
        if numbers[at] == number:
            return None
        out.append(numbers[at])
        over -= held[numbers[at]].bytes
        if over <= 0:
            break
    return out
