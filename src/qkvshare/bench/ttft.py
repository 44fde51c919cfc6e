"""Time to first token: every way to it in one run, in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..evals.handoff import Setting, read_context
from .paths import WAYS, Card, Way

STAGES = ("arguments", "forward", "sample")
_AFTER = 8  # tokens decoded after the first one


@dataclass
class Timing:
    """What a way took: milliseconds of each round.

    Attributes:
        stages: what is timed from the first to the last.
        decode: a token after the first, mean over some.
    """

    way: str
    setting: Setting | None
    context_tokens: int
    nbytes: int
    stages: dict[str, list[float]] = field(default_factory=lambda: {at: [] for at in STAGES})
    decode: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> list[float]:
        """Sums of the stages."""
        return [sum(of) for of in zip(*self.stages.values(), strict=True)]


def measure_ttft(
    model: Any,
    ids: Sequence[int],
    lengths: Sequence[int],
    new_tokens: int,
    names: Sequence[str],
    setting: Setting,
    rounds: int,
) -> Iterator[list[Timing]]:
    """For each length the ways in ``names``; a first round warms up and is not counted.

    ``ids`` are the longest context and ``new_tokens`` more.
    """
    before = model.config._attn_implementation
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for length in lengths:
                new = list(ids[length : length + new_tokens])
                model.set_attn_implementation("sdpa")
                state = read_context(model, list(ids[:length]), [setting])
                ways = [WAYS[name](state, new, Path(folder), setting) for name in names]
                found = []
                for way in ways:
                    way.prepare()
                    used = setting if isinstance(way, Card) else None
                    found.append(Timing(way.name, used, length, way.nbytes))
                for number in range(rounds + 1):
                    for way, timing in zip(ways, found, strict=True):
                        model.set_attn_implementation(way.attention)
                        _once(model, way, timing if number else None)
                yield found
    finally:
        model.set_attn_implementation(before)


def _once(model: Any, way: Way, timing: Timing | None) -> None:
    clock = [time.perf_counter()]
    arguments = way.arguments()
    clock.append(time.perf_counter())
    logits = model(**arguments, logits_to_keep=1, use_cache=True).logits
    clock.append(time.perf_counter())
    token = logits[:, -1].argmax(-1, keepdim=True)
    token.item()
    clock.append(time.perf_counter())
    mask, cache = arguments["attention_mask"], arguments["past_key_values"]
    for _ in range(_AFTER):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
    token.item()
    if timing is not None:
        for number, stage in enumerate(STAGES):
            timing.stages[stage].append(1000 * (clock[number + 1] - clock[number]))
        timing.decode.append(1000 * (time.perf_counter() - clock[-1]) / _AFTER)
