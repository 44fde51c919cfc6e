"""Composition: what a receiver knows of documents that others have read behind another prompt.

Everything is compared with *dense*: the receiver reads all of it itself. KL is dense ‖ composed in
nats per token, over questions with their answers, and over other text. Questions that dense answers
wrong, or that the receiver answers right without any document, are left out. PGR (performance gap
recovered) is the share of the others whose answers greedy decoding gives: dense 1, no document 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from qkvshare import CacheCard, Span, capture
from qkvshare.codecs import Codec, Raw
from qkvshare.hf.capture.reading import read
from qkvshare.hf.compose.anchors import Anchors
from qkvshare.hf.compose.compose import as_cache
from qkvshare.hf.compose.composition import Composition
from qkvshare.hf.compose.layout import Layout, Part
from qkvshare.hf.compose.place import place
from qkvshare.hf.compose.repairs import Repair

from .anchors import Anchor, Published, anchors_of
from .compose_arms import arms
from .compose_items import Item
from .handoff import log_probabilities
from .journal import Journal
from .results import interval

_ANCHORS = 3  # items whose documents are anchors of another one's
Judged = tuple[list[Tensor], Tensor]  # log probabilities of each question, and of the other text


@dataclass(frozen=True)
class Answer:
    """One question under one arm."""

    kind: str
    kl: float
    nll: float
    right: bool


@dataclass(frozen=True)
class Outcome:
    """One item under one arm. ``computed`` is the share of the documents' layers × tokens that
    were computed anew."""

    answers: list[Answer]
    kl_text: float
    computed: float


@dataclass
class Sources:
    """Cards of one item's documents, each made once."""

    model: Any
    item: Item
    codec: Codec
    bits: float | None
    _made: dict[str, list[CacheCard]] = field(default_factory=dict)

    def spans(self, kind: str) -> list[Span]:
        """The documents in the receiver's order, as ``kind`` of donor has them."""
        item = self.item
        lengths = [len(one) for one in item.documents]
        if kind == "whole":  # in the receiver's order, behind the donor's prompt
            (card,) = self._cards(kind, [[*item.donor, *_joined(item.documents)]])
            return [Span(card, len(item.donor))]
        if kind == "order":  # the same in another order
            other = [item.documents[at] for at in item.order]
            (card,) = self._cards(kind, [[*item.donor, *_joined(other)]])
            ends = [len(item.donor)]
            for at in item.order:
                ends.append(ends[-1] + lengths[at])
            starts = {at: start for at, start in zip(item.order, ends, strict=False)}
            return [Span(card, starts[at], starts[at] + n) for at, n in enumerate(lengths)]
        before = {"alone": [], "dummy": 4 * item.donor[:1], "apart": item.donor}[kind]
        cards = self._cards(kind, [[*before, *one] for one in item.documents])
        return [Span(card, len(before)) for card in cards]

    def _cards(self, kind: str, contexts: list[list[int]]) -> list[CacheCard]:
        if kind not in self._made:
            self._made[kind] = [
                capture(self.model, None, ids, codec=self.codec, bits=self.bits) for ids in contexts
            ]
        return self._made[kind]


def measure_compose(
    model: Any,
    items: Sequence[Item],
    codec: Codec,
    bits: float | None,
    chosen: Sequence[str] | None,
    journal: Journal,
) -> Iterator[dict[str, Outcome]]:
    """For each item the outcome of the ``chosen`` arms, or of all. ``wrong`` are the documents of
    the item before, and anchors those of the three before."""
    for number, item in enumerate(items):
        found = journal.get(str(number), dict[str, Outcome])
        if found is None:
            others = [items[number - back] for back in range(1, min(len(items), _ANCHORS + 1))]
            found = _measure(model, item, others, codec, bits, chosen)
            journal.put(str(number), found)
        yield found


def _measure(
    model: Any,
    item: Item,
    others: Sequence[Item],
    codec: Codec,
    bits: float | None,
    chosen: Sequence[str] | None,
) -> dict[str, Outcome]:
    sources = Sources(model, item, codec, bits)
    documents = _joined(item.documents)
    dense = read(model, [*item.receiver, *documents])
    expected = _judge(model, dense.cache(), item)
    found = {"dense": _outcome(expected, expected, item, 1.0)}
    # What the receiver knows without any document, and with those of another item.
    for name, instead in (("none", []), ("wrong", _joined(others[0].documents))):
        said = _judge(model, read(model, [*item.receiver, *instead]).cache(), item)
        found[name] = _outcome(said, expected, item, 0.0)
    wanted = [name for name in arms([], None, None) if chosen is None or name in chosen]
    anchored = any("anchors" in name for name in wanted)
    learnt = _anchors(model, item, others) if anchored else (None, None)
    every = arms(dense.cached, *learnt)
    for name in wanted:
        kind, repair = every[name]
        spans, asked = sources.spans(kind), name.endswith("asked")
        # Without a question a token is left, since a composition has to be gone on from.
        tails = [one.text for one in item.questions] if asked else [item.questions[0].text[:1]]
        judged, cost = list[Judged](), 0.0
        for number, tail in enumerate(tails):
            composition = _composed(model, [item.receiver, *spans, tail], repair)
            cost += composition.cost / len(tails)
            one = replace(item, questions=item.questions[number : number + 1]) if asked else item
            judged.append(_judge(model, as_cache(composition), one))
        said = [row for rows, _ in judged for row in rows], judged[0][1]
        found[name] = _outcome(said, expected, item, cost)
    return found


def _anchors(model: Any, item: Item, others: Sequence[Item]) -> tuple[Anchors, Published]:
    """How the documents of ``others`` change behind the receiver's prompt of ``item`` and behind
    each other, when the donor of ``item`` has read them apart."""
    examples, found = list[Sequence[Part]](), list[list[Anchor]]()
    for other in others:
        spans = Sources(model, replace(item, documents=other.documents), Raw(), None).spans("apart")
        examples.append([item.receiver, *spans, item.text[:1]])
        layout = Layout.of(model, None, examples[-1])
        composition = Composition(model, layout, *place(model, None, layout))
        found.append(anchors_of(composition))
    learnt = Anchors.learn(model, examples)
    return learnt, Published([list(slot) for slot in zip(*found, strict=True)])


def _composed(model: Any, parts: Sequence[Part], repair: Repair) -> Composition:
    layout = Layout.of(model, None, parts)
    composition = Composition(model, layout, *place(model, None, layout))
    repair.repair(composition)
    return composition


def _judge(model: Any, cache: DynamicCache, item: Item) -> Judged:
    known = cache.get_seq_length()

    def after(ids: list[int]) -> Tensor:
        at = torch.arange(known, known + len(ids))[None]
        own = copy.deepcopy(cache)
        return log_probabilities(
            model, input_ids=torch.tensor([ids]), position_ids=at, past_key_values=own
        )

    return [after([*one.text, *one.answer]) for one in item.questions], after(item.text)


def _outcome(said: Judged, expected: Judged, item: Item, computed: float) -> Outcome:
    answers = []
    for one, found, right in zip(item.questions, said[0], expected[0], strict=True):
        first, asked = len(one.text) - 1, torch.tensor(one.asked)
        answer = torch.tensor(one.answer)[asked]
        rows = found[first : first + len(one.answer)][asked]
        nll = -rows.gather(1, answer[:, None]).mean().item()
        answered = bool((rows.argmax(-1) == answer).all())
        answers.append(Answer(one.kind, _kl(right, found), nll, answered))
    return Outcome(answers, _kl(expected[1], said[1]), computed)


def _joined(documents: Sequence[list[int]]) -> list[int]:
    return [token for one in documents for token in one]


def _kl(expected: Tensor, found: Tensor) -> float:
    return (expected.exp() * (expected - found)).sum(-1).mean().item()


def tabulate(model: str, outcomes: Sequence[Mapping[str, Outcome]]) -> list[dict[str, Any]]:
    """A row for each arm: means with intervals over items. ``right`` and ``kept`` count, by kind,
    questions that dense answers right and the receiver alone does not."""
    kept = [
        [
            a.right and not b.right
            for a, b in zip(at["dense"].answers, at["none"].answers, strict=True)
        ]
        for at in outcomes
    ]
    kinds = dict.fromkeys(answer.kind for answer in outcomes[0]["dense"].answers)
    rows = []
    for name in outcomes[0]:
        column = [at[name] for at in outcomes]
        counted = [
            answer
            for outcome, keep in zip(column, kept, strict=True)
            for answer, one in zip(outcome.answers, keep, strict=True)
            if one
        ]
        rows.append(
            {
                "model": model,
                "arm": name,
                "n": len(column),
                "computed": interval([at.computed for at in column])["mean"],
                "kl": interval([_mean([one.kl for one in at.answers]) for at in column]),
                "kl_text": interval([at.kl_text for at in column]),
                "nll": interval([_mean([one.nll for one in at.answers]) for at in column]),
                "right": {k: sum(at.right for at in counted if at.kind == k) for k in kinds},
                "kept": {k: sum(at.kind == k for at in counted) for k in kinds},
            }
        )
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
