"""Agents with roles solve a problem: plan, solve, check, answer; each goes on from the last.

``hops`` hand-offs join ``hops + 1`` agents, who take turns in one conversation of the model's chat
template. An answer is right where its last number is the reference's: the usual exact match.
Several problems are solved at a time, each in a row of a batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qkvshare.card.errors import CaptureError

from .agents import AgentBatch
from .chain import Mode
from .journal import Journal
from .problems import Problem, last_number
from .relay import Outcome

POLICIES = ("append", "requantize", "words", "wrong")
_SYSTEM = "Several agents solve a problem together. Each reads what the others have said."
_BOXED = "put the final answer within \\boxed{}."
_ROLES = {
    "plan": "Plan: list in a few words the steps that solve the problem, without calculating.",
    "solve": f"Please reason step by step, and {_BOXED}",
    "check": f"Check the solution step by step, correct it where it is wrong, and {_BOXED}",
    "answer": "State the final answer, one number and nothing else.",
}
_HEARD = "Another agent said of a problem:\n\n"
_SHORT = 32  # tokens of the last agent, who only says the answer
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

    def most(self, role: str) -> int:
        """Tokens that an agent may say."""
        return min(_SHORT, self.max_new_tokens) if role == "answer" else self.max_new_tokens


def roles(hops: int) -> list[str]:
    """Who speaks: without hand-off one who solves, with one hop one who states the answer, too,
    with two one who plans before them, then more and more who check."""
    if hops < 2:
        return ["solve", "answer"][: hops + 1]
    return ["plan", "solve", *["check"] * (hops - 2), "answer"]


def measure_gsm8k(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    hops: Sequence[int],
    modes: Sequence[Mode],
    journal: Journal,
    sampling: Decoding,
    seeds: int = 1,
    batch: int = 16,
) -> Iterator[tuple[int, list[Outcome]]]:
    """For each problem, number of hops and seed: without hand-off, then, unless there are no hops,
    each mode.

    ``batch`` problems are solved at a time. Raises `CaptureError` for a tokenizer without a chat
    template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CaptureError("the tokenizer has no chat template; expected that of a chat model.")
    for first in range(0, len(problems), batch):
        some = problems[first : first + batch]
        for count in hops:
            ways = [None, *modes] if count else [None]
            for seed in range(seeds):
                found = []
                for number, mode in enumerate(ways):
                    key = f"{first} {count} {seed} {number}"
                    outcomes = journal.get(key, list[Outcome])
                    if outcomes is None:
                        torch.manual_seed(seed)
                        outcomes = solve(model, tokenizer, some, count, mode, sampling)
                        journal.put(key, outcomes)
                    found.append(outcomes)
                for each in zip(*found, strict=True):
                    yield count, [*each]


def solve(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    hops: int,
    mode: Mode | None,
    how: Decoding,
) -> list[Outcome]:
    """All ``problems`` in one batch, under one mode."""
    with tempfile.TemporaryDirectory() as folder:
        agents = AgentBatch(model, mode, Path(folder), len(problems))
        return _take_turns(agents, tokenizer, problems, roles(hops), how)


def _take_turns(
    agents: AgentBatch, tokenizer: Any, problems: Sequence[Problem], who: list[str], how: Decoding
) -> list[Outcome]:
    words = agents.mode is not None and agents.mode.policy == "words"
    texts = [_turns(tokenizer, problem, who) for problem in problems]
    said: list[str] = []
    for turn, role in enumerate(who):
        new = [of[turn] for of in texts]
        if turn:
            agents.hand_over()
            if words:
                new = [_heard(tokenizer, one, role) for one in said]
        spoken = agents.write(new, how.most(role), **how.arguments(tokenizer))
        said = [tokenizer.decode(one, skip_special_tokens=True) for one in spoken]
    pairs = zip(agents.bits_per_value, said, problems, strict=True)
    return [Outcome(bits, last_number(one) == at.answer, []) for bits, one, at in pairs]


def _turns(tokenizer: Any, problem: Problem, who: Sequence[str]) -> list[list[int]]:
    """Token ids of what stands before each agent's words, from the end of the words before."""
    messages = [{"role": "system", "content": _SYSTEM}]
    turns = []
    for number, role in enumerate(who):
        asked = f"Problem: {problem.question}\n\n" if number == 0 else ""
        messages.append({"role": "user", "content": asked + _ROLES[role]})
        text = _templated(tokenizer, messages)
        turns.append(_ids(tokenizer, text.rpartition(_MARK)[2]))
        messages.append({"role": "assistant", "content": _MARK})
    return turns


def _heard(tokenizer: Any, words: str, role: str) -> list[int]:
    """The conversation of an agent who gets nothing but the words of the one before."""
    asked = f"{_HEARD}{words}\n\n{_ROLES[role]}"
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]
    return _ids(tokenizer, _templated(tokenizer, messages))


def _templated(tokenizer: Any, messages: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
