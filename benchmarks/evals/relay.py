"""Relay: agents in turn each add a part of a solution, the last one states the result.

The parts are the reference's, so what is measured is what the cache has kept and not the model's
skill: the number that is asked for at the end was written by an agent before. ``hops`` hand-offs
join ``hops + 1`` agents; the solution is cut into ``hops`` parts of equal length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qkvshare.hf.calibrate.texts import TextError

from .chain import AgentChain, Mode, Preamble
from .journal import Journal
from .problems import Problem, first_number

SHOTS = 4  # problems in the preamble
_ASK = "\nThe final answer is"
_MOST = 12  # tokens of an answer


@dataclass(frozen=True)
class Outcome:
    """One problem, one mode: ``kl[i]`` after ``i + 1`` hand-offs, nats per token."""

    bits_per_value: float
    correct: bool
    kl: list[float]


def measure_relay(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    hops: Sequence[int],
    modes: Sequence[Mode],
    journal: Journal,
) -> Iterator[tuple[int, list[Outcome]]]:
    """For each problem behind the first `SHOTS`, for each of ``hops``: without hand-off, then each
    mode. Raises `TextError` for solutions with fewer tokens than hops."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    shots = "".join(_solved(problem) for problem in problems[:SHOTS])
    solutions = [encode(problem.solution) for problem in problems[SHOTS:]]
    for solution in solutions:
        _parts(solution, max(hops))  # refused before anything long is done
    preamble: Preamble | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number, problem in enumerate(problems[SHOTS:]):
            for count in hops:
                key = f"{number} {count}"
                outcomes = journal.get(key, list[Outcome])
                if outcomes is None:
                    preamble = preamble or Preamble.of(model, tokenizer(shots)["input_ids"], modes)
                    chains = [
                        AgentChain.behind(preamble, mode, Path(folder)) for mode in (None, *modes)
                    ]
                    first, *rest = _parts(solutions[number], count)
                    texts = [encode(_asked(problem)) + first, *rest, encode(_ASK)]
                    outcomes = _run(chains, texts, tokenizer, problem.answer)
                    journal.put(key, outcomes)
                yield count, outcomes


def _run(
    chains: Sequence[AgentChain],
    texts: Sequence[list[int]],
    tokenizer: Any,
    answer: str,
) -> list[Outcome]:
    """Each chain reads ``texts`` with a hand-off between any two, then states the result."""
    outcomes: list[Outcome] = []
    reference: list[Tensor] = []
    for chain in chains:
        kl = []
        chain.read(texts[0])
        for number, text in enumerate(texts[1:]):
            chain.hand_over()
            found = chain.score(text)
            if chain.mode is None:
                reference.append(found)
            else:
                kl.append(divergence(reference[number], found))
        correct = first_number(_say(chain, found, tokenizer)) == answer
        outcomes.append(Outcome(chain.bits_per_value, correct, kl))
    return outcomes


def _say(chain: AgentChain, found: Tensor, tokenizer: Any) -> str:
    """Greedy, up to the end of the line."""
    said: list[int] = []
    text = ""
    while len(said) < _MOST and "\n" not in text:
        said.append(int(found[-1].argmax()))
        text = tokenizer.decode(said)
        found = chain.score(said[-1:])
    return text


def _solved(problem: Problem) -> str:
    return f"{_asked(problem)}{problem.solution}{_ASK} {problem.answer}.\n\n"


def _asked(problem: Problem) -> str:
    return f"Question: {problem.question}\nAnswer: "


def _parts(ids: list[int], count: int) -> list[list[int]]:
    if len(ids) < count:
        raise TextError(
            f"a solution of {len(ids)} tokens cannot be cut into {count} parts, one for each "
            "hand-off. Ask for fewer hops."
        )
    return [ids[n * len(ids) // count : (n + 1) * len(ids) // count] for n in range(count)]


def divergence(reference: Tensor, found: Tensor) -> float:
    """Mean KL of log probabilities ``[tokens, vocabulary]``, reference ‖ found, in nats."""
    return (reference.exp() * (reference - found)).sum(-1).mean().item()
