"""Recall over hand-offs: facts that earlier agents wrote, asked of the last one.

The context of `recall` is written by ``hops`` agents in turn, each a run of it, with a hand-off
after each; then all facts are asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .chain import AgentChain, Mode
from .handoff import read_context
from .journal import Journal
from .recall import Haystack, Recall, ask, haystack


def measure_recall_hops(
    model: Any,
    tokenizer: Any,
    filler: Sequence[int],
    contexts: int,
    context_tokens: int,
    hops: Sequence[int],
    modes: Sequence[Mode],
    journal: Journal,
    seed: int = 0,
    kind: str = "short",
) -> Iterator[tuple[int, list[Recall]]]:
    """For each context and number of hops: full precision without hand-off, then each mode."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(contexts):
            hay = haystack(tokenizer, filler, number, context_tokens, seed, kind)
            for count in hops:
                key = f"{number} {count}"
                found = journal.get(key, list[Recall])
                if found is None:
                    found = _run(model, hay, count, modes, Path(folder))
                    journal.put(key, found)
                yield count, found


def _run(model: Any, hay: Haystack, hops: int, modes: Sequence[Mode], folder: Path) -> list[Recall]:
    first, *rest = hay.runs(hops)
    state = read_context(model, first, [mode.setting for mode in modes])
    results = []
    for mode in (None, *modes):
        chain = AgentChain.after(state, mode, folder)
        for run in rest:
            chain.hand_over()
            chain.read(run)
        chain.hand_over()
        cache = chain.receive(hay.questions[0][0])
        results.append(ask(model, hay.questions, cache, chain.bits_per_value))
    return results
