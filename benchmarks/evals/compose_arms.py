"""What is compared where documents stand behind another prompt: donors, repairs and anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qkvshare.codecs import LayerKV
from qkvshare.hf.compose.composition import Composition
from qkvshare.hf.compose.repairs import Anchored, Deviation, First, Narrowed, Nothing, Repair
from qkvshare.hf.inject.bound import BoundCard


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


@dataclass(frozen=True)
class Misplaced(Anchored):
    """Anchors of other slots: what `Anchored` must beat."""

    def repair(self, composition: Composition) -> None:
        """Each part is shifted as the next one should be."""
        slots = [*self.anchors.slots[1:], *self.anchors.slots[:1]]
        Anchored(replace(self.anchors, slots=slots), self.then).repair(composition)


def arms(dense: Sequence[LayerKV], anchors: Any, published: Any) -> dict[str, tuple[str, Repair]]:
    """By name: the donor, and the repair. What is *asked* is composed anew for each question, which
    stands behind the documents then. Both kinds of anchors, `Anchors` and `Published`, are of
    documents ``apart``; without them the arms that need them cannot run."""
    found: dict[str, tuple[str, Repair]] = {"naive": ("alone", Unmoved())}
    for kind in ("alone", "dummy", "apart", "order", "whole"):
        found[kind] = kind, Nothing()
    for kind in ("alone", "apart"):
        for count in (4, 16):
            found[f"{kind} + first {count}"] = kind, First(count)
        found[f"{kind} + drawn 5%"] = kind, Drawn(0.05)
        found[f"{kind} + last 16"] = kind, Drawn(0, 16)
    found["apart + drawn 15%"] = "apart", Drawn(0.15)
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
    found["apart + published anchors"] = "apart", published
    found["apart + anchors"] = "apart", Anchored(anchors, Nothing())
    found["apart + anchors of other slots"] = "apart", Misplaced(anchors, Nothing())
    for name, then in (
        ("first 4", First(4)),
        ("deviation 5%", Deviation(0.05)),
        ("deviation 15%", Deviation(0.15)),
        ("narrowed 15%", Narrowed(0.15)),
        ("narrowed 15%, asked", Narrowed(0.15)),
        ("oracle 15%", Oracle(0.15, dense)),
    ):
        found[f"apart + anchors + {name}"] = "apart", Anchored(anchors, then)
    found["whole + first 4"] = "whole", First(4)
    found["whole + narrowed 5%"] = "whole", Narrowed(0.05)
    for kind, share in (("apart", 0.05), ("apart", 0.15), ("order", 0.15)):
        found[f"{kind} + narrowed {share:.0%}, asked"] = kind, Narrowed(share)
    for share in (0.01, 0.05):
        found[f"whole + oracle {share:.0%}"] = "whole", Oracle(share, dense)
    return found
