"""Time to first token: every route to it in one run, in turn."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..evals.handoff import Setting, read_context
from .cards import CardFile
from .clock import Clock
from .link import cross
from .peak import peak_extra_bytes
from .routes import Route

_AFTER = 8  # tokens decoded after the first one

Times = defaultdict[str, list[float]]


@dataclass
class RouteTiming:
    """What a route took: milliseconds of each round.

    Attributes:
        stages: what is timed from the first to the last, in this order: link (where a file must
            cross one), open, inject, forward, sample.
        alone: parts of ``open`` and ``inject`` that overlap there, each by itself.
        decode: a token after the first, mean over some.
        cache_bytes: of the cache in memory then.
        peak: bytes of memory that opening and injecting took beside the cache itself.
    """

    route: Route
    context_tokens: int
    nbytes: int = 0
    stages: Times = field(default_factory=lambda: defaultdict(list))
    alone: Times = field(default_factory=lambda: defaultdict(list))
    decode: list[float] = field(default_factory=list)
    cache_bytes: int | None = None
    peak: int | None = None

    @property
    def ttft(self) -> list[float]:
        """Sums of the stages."""
        return [sum(of) for of in zip(*self.stages.values(), strict=True)]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        routes: classes of routes; those with a card once for each of ``settings``.
        settings: of the cards.
        rounds: how often.
        link: Mbit a second, where files must first cross one; routes without a file are left out.
        memory: where peak memory is measured, each route in a process of its own: the name that
            it loads the model by.
        profile: and the profile.
    """

    routes: Sequence[type[Route]]
    settings: Sequence[Setting]
    rounds: int
    link: float | None = None
    memory: str | None = None
    profile: Path | None = None


def measure_ttft(
    model: Any, ids: Sequence[int], lengths: Sequence[int], new_tokens: int, plan: Plan
) -> Iterator[list[RouteTiming]]:
    """For each length the routes; a first round warms up and is not counted.

    ``ids`` are the longest context and ``new_tokens`` more.
    """
    before = model.config._attn_implementation
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for length in lengths:
                new = list(ids[length : length + new_tokens])
                model.set_attn_implementation("sdpa")
                yield _measure(model, list(ids[:length]), new, Path(folder), plan)
    finally:
        model.set_attn_implementation(before)


def _measure(
    model: Any, ids: list[int], new: list[int], folder: Path, plan: Plan
) -> list[RouteTiming]:
    state = read_context(model, ids, plan.settings)
    routes = []
    for kind in plan.routes:
        if plan.link is not None and kind.file is None:
            continue
        settings = list(enumerate(plan.settings)) if issubclass(kind, CardFile) else [(0, None)]
        for number, setting in settings:
            if setting and issubclass(kind, CardFile) and not kind.takes(model, setting.codec):
                continue
            own = folder / str(number)
            own.mkdir(exist_ok=True)
            routes.append(kind(model, state.ids, new, own, setting))
    found = []
    for route in routes:
        route.prepare(state)
        found.append(RouteTiming(route, len(ids)))
    for timing in found:
        timing.route.ready(state)
        timing.nbytes = timing.route.nbytes
    for number in range(plan.rounds + 1):
        turn = number % len(found)  # nobody always comes after the same one
        for timing in [*found[turn:], *found[:turn]]:
            model.set_attn_implementation(timing.route.attention)
            _once(timing if number else RouteTiming(timing.route, 0), plan.link)
    if plan.memory is not None:
        for timing in found:
            timing.peak = peak_extra_bytes(plan.memory, timing.route, plan.profile)
    return found


def _once(timing: RouteTiming, link: float | None) -> None:
    route, clock = timing.route, Clock(timing.route.model.device)
    clock.settle()
    if link is not None:
        sent = route.folder / "sent"
        route.path.rename(sent)
        _time("link", timing.stages, lambda: cross(sent, route.path, link), clock)
    stages = route.open, route.inject, route.forward, route.sample
    moments = [clock.now()]
    for stage in stages:
        stage()
        moments.append(clock.now())
    for stage, start, end in zip(stages, moments[:-1], moments[1:], strict=True):
        timing.stages[stage.__name__].append(clock.between(start, end))
    timing.cache_bytes = route.cache_bytes
    start = clock.now()
    for _ in range(_AFTER):
        route.follow()
    timing.decode.append(clock.between(start, clock.now()) / _AFTER)
    route.drop()
    for name, part in route.alone().items():
        _time(name, timing.alone, part, clock)


def _time(name: str, times: Times, part: Callable[[], object], clock: Clock) -> None:
    start = clock.now()
    made = part()
    times[name].append(clock.between(start, clock.now()))
    del made
