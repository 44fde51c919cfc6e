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
from qkvshare.codecs import Codec, LayerKV
from qkvshare.hf.capture.reading import read
from qkvshare.hf.compose.compose import as_cache
from qkvshare.hf.compose.composition import Composition
from qkvshare.hf.compose.layout import Layout, Part
from qkvshare.hf.compose.place import place
from qkvshare.hf.compose.repairs import Deviation, First, Narrowed, Nothing, Repair
from qkvshare.hf.inject.bound import BoundCard

from .compose_items import Item
from .handoff import log_probabilities
from .journal import Journal
from .results import interval

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


@dataclass(frozen=True)
class Unmoved(Nothing):
    """Keys stay at the positions that they had in their cards: what naive reuse does."""

    def repair(self, composition: Composition) -> None:
        """Turn keys back."""
        for placed in composition.layout.spans:
            bound = BoundCard(placed.span.card, composition.model)
            end = min(placed.at + len(placed.span), composition.layout.cached)
            for number, layer in enumerate(composition.buffers):
                keys = layer.keys[:, placed.at : end]
                keys.copy_(bound.move(number, keys, placed.at, -placed.moved))
        composition.read()


@dataclass(frozen=True)
class Drawn(Repair):
    """A share of the tokens, drawn; or the last ones of each part. What `First` must beat."""

    share: float
    last: int = 0

    def repair(self, composition: Composition) -> None:
        """Drawn anew for each composition."""
        changed = composition.changed
        if self.last:
            ends = [*composition.layout.seams[1:], composition.layout.cached]
            parts = [changed[(changed < end) & (changed >= end - self.last)] for end in ends]
            composition.compute(torch.cat(parts))
            return
        draw = torch.Generator().manual_seed(len(composition.layout.ids))
        picked = torch.randperm(len(changed), generator=draw)[: round(self.share * len(changed))]
        composition.compute(changed[picked.sort().values])


@dataclass(frozen=True)
class Oracle(Repair):
    """The tokens whose values differ most from what ``dense`` has, over all layers: what better
    choices could still gain."""

    share: float
    dense: Sequence[LayerKV]

    def repair(self, composition: Composition) -> None:
        """By true deviation."""
        changed = composition.changed
        total = torch.zeros(len(changed))
        for layer, own in zip(self.dense, composition.buffers, strict=True):
            new, old = layer.values[:, changed].float(), own.values[:, changed].float()
            total += (new - old).square().sum((0, 2)) / new.square().sum()
        most = total.topk(round(self.share * len(changed))).indices
        composition.compute(changed[most.sort().values])


def arms(dense: Sequence[LayerKV]) -> dict[str, tuple[str, Repair]]:
    """By name: the donor, and the repair. What is *asked* is composed anew for each question, which
    stands behind the documents then."""
    found: dict[str, tuple[str, Repair]] = {"naive": ("alone", Unmoved())}
    for kind in ("alone", "dummy", "apart", "order", "whole"):
        found[kind] = kind, Nothing()
    for count in (4, 16):
        found[f"apart + first {count}"] = "apart", First(count)
    found["apart + drawn 15%"] = "apart", Drawn(0.15)
    found["apart + last 16"] = "apart", Drawn(0, 16)
    for share in (0.05, 0.15, 0.3):
        found[f"apart + deviation {share:.0%}"] = "apart", Deviation(share)
        found[f"apart + narrowed {share:.0%}"] = "apart", Narrowed(share)
        found[f"apart + oracle {share:.0%}"] = "apart", Oracle(share, dense)
    for way, repair in (
        ("first 4", First(4)),
        ("deviation 15%", Deviation(0.15)),
        ("narrowed 15%", Narrowed(0.15)),
        ("oracle 15%", Oracle(0.15, dense)),
    ):
        found[f"order + {way}"] = "order", repair
    found["whole + first 4"] = "whole", First(4)
    found["whole + narrowed 5%"] = "whole", Narrowed(0.05)
    for kind, share in (("apart", 0.05), ("apart", 0.15), ("order", 0.15)):
        found[f"{kind} + narrowed {share:.0%}, asked"] = kind, Narrowed(share)
    for share in (0.01, 0.05):
        found[f"whole + oracle {share:.0%}"] = "whole", Oracle(share, dense)
    return found


def measure_compose(
    model: Any,
    items: Sequence[Item],
    codec: Codec,
    bits: float | None,
    chosen: Sequence[str] | None,
    journal: Journal,
) -> Iterator[dict[str, Outcome]]:
    """For each item the outcome of the ``chosen`` arms, or of all. ``wrong`` are the documents of
    the item before."""
    for number, item in enumerate(items):
        found = journal.get(str(number), dict[str, Outcome])
        if found is None:
            found = _measure(model, item, items[number - 1], codec, bits, chosen)
            journal.put(str(number), found)
        yield found


def _measure(
    model: Any,
    item: Item,
    last: Item,
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
    for name, others in (("none", []), ("wrong", _joined(last.documents))):
        said = _judge(model, read(model, [*item.receiver, *others]).cache(), item)
        found[name] = _outcome(said, expected, item, 0.0)
    for name, (kind, repair) in arms(dense.cached).items():
        if chosen is not None and name not in chosen:
            continue
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
