"""The tool calls of many agents, drawn with a seed, for `ttl.py`.

What a re-prefill and a card take is read from `ttft.md`; how long tools take has the shapes that
TraceLab (arXiv:2606.30560) and Continuum (arXiv:2511.02230) report; see `ttl.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkvshare.store.ttl import State

Rng = np.random.Generator
Draw = Callable[[Rng], float]
_TTFT = Path(__file__).parents[2] / "docs" / "results" / "ttft.md"
_CELLS = 13  # of its table of all paths, with the empty ones at both ends


class Call(NamedTuple):
    """One tool call, as it happens."""

    at: float  # s
    tool: str
    seconds: float  # inf: the agent is not needed again
    state: State
    turn: int  # of its session, from 1
    again_ms: float  # first token by re-prefill
    card_ms: float  # first token from the card's file
    bytes: int

    @property
    def saved_ms(self) -> float:
        """By a card."""
        return self.again_ms - self.card_ms


def lognormal(median: float, sigma: float) -> Draw:
    """In s; ``sigma`` of the logarithm."""
    return lambda rng: median * math.exp(sigma * rng.normal())


def bimodal(fast: Draw, slow: Draw, share: float) -> Draw:
    """``share`` of them are slow."""
    return lambda rng: slow(rng) if rng.random() < share else fast(rng)


def pareto(least: float, power: float, most: float) -> Draw:
    """A heavy tail: P(T > t) = (least / t) ** power, and none longer than ``most`` s."""
    return lambda rng: min(most, least * (1 + rng.pareto(power)))


TOOLS: dict[str, tuple[float, Draw]] = {  # the share of an agent's calls, and the seconds
    "read": (0.56, lognormal(0.1, 1.0)),
    "shell": (0.30, bimodal(lognormal(0.8, 0.8), lognormal(60, 1.0), 0.2)),
    "web": (0.10, lognormal(2.0, 0.8)),
    "agent": (0.04, pareto(20, 1.1, 86400)),
}
_USER = lognormal(84, 2.1)
_GENERATION = lognormal(5.7, 1.06)
_STEPS = 8  # calls for each request of a user, on average
_AWAY: dict[State, float] = {"foreground": 0.40, "background": 0.77}


@dataclass(frozen=True)
class World:
    """Agents start at ``load`` a minute for ``minutes``; their tools may change half-way."""

    load: float
    minutes: float = 60
    slower: float = 1.0  # shell and web take so much longer in the second half
    renamed: bool = False  # all tools have other names in the second half
    slow_user: float = 4.0  # a user takes so much longer for an agent in the background

    def calls(self, seed: int) -> list[Call]:
        """In the order of time."""
        rng, times = np.random.default_rng(seed), Times()
        found: list[Call] = []
        start = 0.0
        while (start := start + rng.exponential(60 / self.load)) < 60 * self.minutes:
            found.extend(self._session(rng, start, times))
        return sorted(found, key=lambda call: call.at)

    def _session(self, rng: Rng, now: float, times: Times) -> list[Call]:
        state: State = "foreground" if rng.random() < 0.5 else "background"
        tokens, calls = float(rng.integers(1024, 4097)), list[Call]()
        names, shares = list(TOOLS), [share for share, _ in TOOLS.values()]
        while True:
            now += _GENERATION(rng)
            if rng.random() < 1 / (_STEPS + 1):
                tool, seconds = "user", _USER(rng)
                seconds *= self.slow_user if state == "background" else 1.0
                if rng.random() < _AWAY[state]:
                    seconds = math.inf
            else:
                tool = names[rng.choice(len(names), p=shares)]
                seconds = TOOLS[tool][1](rng)
            if now > 30 * self.minutes:
                seconds *= self.slower if tool in ("shell", "web") else 1.0
                tool += "-2" if self.renamed else ""
            if now + seconds > 120 * self.minutes:  # nobody looks further
                seconds = math.inf
            calls.append(Call(now, tool, seconds, state, len(calls) + 1, *times.at(tokens)))
            if seconds == math.inf:
                return calls
            now, tokens = now + seconds, min(8128.0, tokens + lognormal(200, 1.0)(rng))


class Times:
    """First tokens and sizes by context length, from the table of `ttft.md`."""

    def __init__(self) -> None:
        again, card = rows("`re-prefill`"), rows("`card-file`, packed")
        self.tokens, self.again_ms, _ = zip(*again, strict=True)
        _, self.card_ms, self.megabytes = zip(*card, strict=True)

    def at(self, tokens: float) -> tuple[float, float, int]:
        """ms by re-prefill, ms by card, bytes of the card; linear between the lengths measured."""
        again, card, size = (
            float(np.interp(tokens, self.tokens, of))
            for of in (self.again_ms, self.card_ms, self.megabytes)
        )
        return again, card, int(1e6 * size)


def rows(path: str) -> list[tuple[int, float, float]]:
    """Tokens, first token in ms, and MB of the file of one path."""
    cells = [line.split("|") for line in _TTFT.read_text().splitlines()]
    return [
        (int(row[1]), float(row[3].split("[")[0].replace(",", "")), float(row[9]))
        for row in cells
        if len(row) == _CELLS and row[2].strip() == path and "[" in row[3]
    ]
