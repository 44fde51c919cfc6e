"""Agents with roles solve a problem: plan, solve, check, answer; each goes on from the last.

``hops`` hand-offs join ``hops + 1`` agents, who take turns in one conversation of the model's chat
template. An answer is right where its last number is the reference's: the usual exact match.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from qkvshare.card.errors import CaptureError

from .chain import AgentChain, Mode, Preamble
from .journal import Journal
from .problems import Problem, last_number
from .relay import Outcome

_SYSTEM = "Several agents solve a problem together. Each reads what the others have said."
_ROLES = {
    "plan": "Plan: list the steps that solve the problem, without calculating.",
    "solve": "Solve the problem step by step.",
    "check": "Check the solution step by step. Correct it where it is wrong.",
    "answer": "State the final answer, one number and nothing else.",
}
_MARK = "@@@"


@dataclass(frozen=True)
class Decoding:
    """How agents speak; at temperature 0 greedily."""

    max_new_tokens: int = 256
    temperature: float = 0.0

    def arguments(self, tokenizer: Any) -> dict[str, Any]:
        """For ``generate``."""
        how: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            how |= {"temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return how | {"pad_token_id": tokenizer.pad_token_id or tokenizer.eos_token_id}


def roles(hops: int) -> list[str]:
    """Who speaks: for 1 hop solve and answer, for 2 plan before them, then more and more checks."""
    return ["plan", "solve", *["check"] * (hops - 2), "answer"] if hops > 1 else ["solve", "answer"]


def measure_gsm8k(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    hops: Sequence[int],
    modes: Sequence[Mode],
    journal: Journal,
    sampling: Decoding,
    seeds: int = 1,
) -> Iterator[tuple[int, list[Outcome]]]:
    """For each problem, number of hops and seed: without hand-off, then each mode.

    Raises `CaptureError` for a tokenizer without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CaptureError("the tokenizer has no chat template; expected that of a chat model.")
    preamble: Preamble | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number, problem in enumerate(problems):
            for count in hops:
                turns = _turns(tokenizer, problem, roles(count))
                for seed in range(seeds):
                    key = f"{number} {count} {seed}"
                    outcomes = journal.get(key, list[Outcome])
                    if outcomes is None:
                        preamble = preamble or _preamble(model, tokenizer, problems, modes)
                        chains = [
                            AgentChain.behind(preamble, mode, Path(folder))
                            for mode in (None, *modes)
                        ]
                        known = len(preamble.state.ids)
                        texts = [turns[0][known:], *turns[1:]]
                        outcomes = []
                        for chain in chains:
                            torch.manual_seed(seed)
                            outcomes.append(_run(chain, texts, tokenizer, sampling, problem.answer))
                        journal.put(key, outcomes)
                    yield count, outcomes


def _run(
    chain: AgentChain, texts: Sequence[list[int]], tokenizer: Any, sampling: Decoding, answer: str
) -> Outcome:
    how, said = sampling.arguments(tokenizer), ""
    for number, text in enumerate(texts):
        if number:
            chain.hand_over()
        if chain.unread == text[:1]:
            chain.unread = []  # the mark that ends a turn: the template has it, too
        said = tokenizer.decode(chain.write(text, sampling.max_new_tokens, **how))
    return Outcome(chain.bits_per_value, last_number(said) == answer, [])


def _preamble(
    model: Any, tokenizer: Any, problems: Sequence[Problem], modes: Sequence[Mode]
) -> Preamble:
    """What conversations about any problem begin with."""
    other = Problem("!", "", "")
    begun = (_turns(tokenizer, problem, ["solve"])[0] for problem in (problems[0], other))
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(*begun, strict=False))
    return Preamble.of(model, [one for one, _ in alike], modes)


def _turns(tokenizer: Any, problem: Problem, who: Sequence[str]) -> list[list[int]]:
    """Token ids of what stands before each agent's words, from the end of the words before."""
    messages = [{"role": "system", "content": _SYSTEM}]
    turns = []
    for number, role in enumerate(who):
        asked = f"Problem: {problem.question}\n\n" if number == 0 else ""
        messages.append({"role": "user", "content": asked + _ROLES[role]})
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        turns.append(tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"])
        messages.append({"role": "assistant", "content": _MARK})
    return turns
