"""Recall over hand-offs: facts that earlier agents wrote, asked of the last one.

The context of `recall` is written by ``hops`` agents in turn, each a run of it, with a hand-off
after each; then all facts are asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .handoff import read_context
from .journal import Journal
from .line import Line, Way
from .recall import Haystack, Recall, ask, haystack


def measure_recall_hops(
    model: Any,
    tokenizer: Any,
    filler: Sequence[int],
    contexts: int,
    context_tokens: int,
    hops: Sequence[int],
    ways: Sequence[Way],
    journal: Journal,
    seed: int = 0,
    kind: str = "short",
) -> Iterator[tuple[int, list[Recall]]]:
    """For each context and number of hops: full precision without hand-off, then each way."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(contexts):
            hay = haystack(tokenizer, filler, number, context_tokens, seed, kind)
            for count in hops:
                key = f"{number} {count}"
                found = journal.get(key, list[Recall])
                if found is None:
                    found = _run(model, hay, count, ways, Path(folder))
                    journal.put(key, found)
                yield count, found


def _run(model: Any, hay: Haystack, hops: int, ways: Sequence[Way], folder: Path) -> list[Recall]:
    first, *rest = hay.runs(hops)
    state = read_context(model, first, [way.setting for way in ways])
    results = []
    for way in (None, *ways):
        line = Line.after(state, way, folder)
        for run in rest:
            line.hand_over()
            line.read(run)
        line.hand_over()
        cache = line.receive(hay.questions[0][0])
        results.append(ask(model, hay.questions, cache, line.bits_per_value))
    return results
