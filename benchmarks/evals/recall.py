"""Recall: what the next agent can still ask.

Facts are hidden in filler text; each is asked for after the hand-off. Exact is the share of answers
that greedy decoding copies without a mistake, answer NLL the mean negative log likelihood of an
answer's tokens in nats. The salience of a scorer that knows only the context's own attention does
not protect such facts: nobody has asked about them yet.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from qkvshare.hf.calibrate.texts import TextError
from qkvshare.hf.text.tokens import as_ids

from .facts import Fact, random_facts, random_records
from .handoff import Setting, hand_over, log_probabilities, read_context

# Kinds of facts: how many are hidden in a context, and who makes them.
FACTS: dict[str, tuple[int, Callable[[int, int], list[Fact]]]] = {
    "short": (8, random_facts),
    "records": (2, random_records),
}


@dataclass(frozen=True)
class Recall:
    """One context under one setting: means over its questions."""

    bits_per_value: float
    exact: float
    answer_nll: float


@dataclass(frozen=True)
class Haystack:
    """A context's token ids, where in it facts are (start, end), and ids of question and answer of
    each."""

    ids: list[int]
    places: list[tuple[int, int]]
    questions: list[tuple[list[int], list[int]]]

    def runs(self, count: int) -> list[list[int]]:
        """``count`` runs of nearly equal length; no fact is cut."""
        cuts = [0]
        for number in range(1, count):
            cut = number * len(self.ids) // count
            cuts.append(next((end for start, end in self.places if start < cut < end), cut))
        return [self.ids[at:to] for at, to in pairwise([*cuts, len(self.ids)])]


def build_haystack(
    tokenizer: Any, filler: Sequence[int], tokens: int, facts: Sequence[Fact]
) -> Haystack:
    """A context of exactly ``tokens`` ids: facts at equal distances in ``filler``.

    Raises `TextError` where the facts or the filler do not fit.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    hidden = [encode("\n" + fact.statement + "\n") for fact in facts]
    room = tokens - sum(map(len, hidden))
    if room < len(facts) + 1 or len(filler) < room:
        raise TextError(
            f"{len(facts)} facts in {tokens} tokens leave {room} for filler, and the text gives "
            f"{len(filler)}. Ask for longer contexts, or give more text."
        )
    ids: list[int] = []
    places, start = [], 0
    for index, fact in enumerate(hidden):
        end = (index + 1) * room // (len(hidden) + 1)
        ids += [*filler[start:end], *fact]
        places.append((len(ids) - len(fact), len(ids)))
        start = end
    ids += filler[start:room]
    asked = [(encode("\n" + fact.question), encode(fact.answer)) for fact in facts]
    return Haystack(ids, places, asked)


def haystack(
    tokenizer: Any, filler: Sequence[int], number: int, tokens: int, seed: int, kind: str
) -> Haystack:
    """Context ``number``, with the facts of its own. Raises `TextError`."""
    count, make = FACTS[kind]
    own = filler[number * tokens : (number + 1) * tokens]
    return build_haystack(tokenizer, own, tokens, make(seed + number, count))


def measure_recall(
    model: Any,
    tokenizer: Any,
    filler: Sequence[int],
    contexts: int,
    context_tokens: int,
    settings: Sequence[Setting],
    seed: int = 0,
    focus: bool = False,
    kind: str = "short",
) -> Iterator[list[Recall]]:
    """For each context: the result at full precision without hand-off, then one a setting.

    With ``focus`` every question gets a card of its own, made by a sender who knows it.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number in range(contexts):
            hay = haystack(tokenizer, filler, number, context_tokens, seed, kind)
            state = read_context(model, hay.ids, settings)
            results = [ask(model, hay.questions, state.cache(), 8.0 * model.dtype.itemsize)]
            parts: list[list[Recall]] = [[] for _ in settings]
            for group in [[one] for one in hay.questions] if focus else [hay.questions]:
                first = group[0][0]
                known = as_ids(first) if focus else None
                cards = hand_over(state, settings, Path(folder), known)
                for part, card in zip(parts, cards, strict=True):
                    injected = card.inputs(model, new=first, new_only=True)["past_key_values"]
                    part.append(ask(model, group, injected, card.bits_per_value))
            yield results + [_mean(part) for part in parts]


def _mean(parts: Sequence[Recall]) -> Recall:
    values = zip(*(vars(part).values() for part in parts), strict=True)
    return Recall(*(sum(of) / len(parts) for of in values))


def ask(
    model: Any, questions: Sequence[tuple[list[int], list[int]]], cache: DynamicCache, bits: float
) -> Recall:
    """Every question is asked of its own copy of the cache, over the same memory."""
    exact, nll = [], []
    for question, answer in questions:
        ids = torch.tensor([question + answer], device=model.device)
        own = copy.copy(cache)
        own.layers = [copy.copy(layer) for layer in cache.layers]
        found = log_probabilities(model, input_ids=ids, past_key_values=own)
        found = found[len(question) - 1 : -1]  # those that predict the answer's tokens
        expected = torch.tensor(answer, device=found.device)
        exact.append(float((found.argmax(-1) == expected).all()))
        nll.append(-found.gather(1, expected[:, None]).mean().item())
    return Recall(bits, sum(exact) / len(exact), sum(nll) / len(nll))
