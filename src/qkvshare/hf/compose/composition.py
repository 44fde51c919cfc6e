"""A composition while it is made: what each layer holds, and what a repair may ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...card.errors import UnsupportedModelError
from ...codecs import LayerKV
from ...scoring import AttentionScorer
from ..cache.observe import observe
from ..capture.salience import look_back, salience
from ..capture.state import State
from .layout import Layout
from .rows import Narrowing, changes, compute_rows

_QUESTION = 4  # tokens that are enough to say what is looked for


@dataclass
class Composition:
    """Spans in their places, beside text that nobody has read yet.

    Attributes:
        model: reads.
        layout: which tokens stand where.
        buffers: keys and values of each layer, ``[kv_heads, tokens, dim]``.
        held: for each layer, which of the cached tokens it has ``[cached]``.
        anew: which of the cached tokens came from cards, and were computed anew in all layers
            ``[cached]``.
        cost: tokens × layers that were computed anew, as a share of all `changed` ones.
    """

    model: PreTrainedModel
    layout: Layout
    buffers: list[LayerKV]
    held: list[Tensor]
    anew: Tensor = field(init=False)
    cost: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.anew = torch.zeros(self.layout.cached, dtype=torch.bool)

    @property
    def text(self) -> Tensor:
        """Positions of cached tokens that come from no card: they must be computed."""
        return torch.from_numpy((~self.layout.taken).nonzero()[0])

    @property
    def changed(self) -> Tensor:
        """Positions of tokens from cards that something else stands before now."""
        taken = torch.from_numpy(self.layout.taken.copy())
        taken[: self.layout.exact] = False
        return taken.nonzero()[:, 0]

    @property
    def state(self) -> State:
        """What the model would have made of the tokens, in the same memory. Raises as `compute`."""
        self.require_seen(self.changed[:0])
        known, layers = self.layout.cached, observe(self.model).layers
        cached = [LayerKV(at.keys[:, :known], at.values[:, :known]) for at in self.buffers]
        return State(self.model, self.layout.ids[:known], layers, cached)

    def read(self) -> None:
        """Compute the `text`."""
        self.compute(self.changed[:0])

    def deviation(self, layers: int) -> Tensor:
        """How much keys and values of the `changed` tokens change when they are computed anew, as
        shares of what they are, summed over the first ``layers`` layers: ``[changed]``.

        These layers keep what was computed, which is exact. Costs ``layers - 1`` layers.
        """
        rows = self._with_text(self.changed)
        self.require_seen(rows)
        found = changes(self.model, self.layout.ids, self.buffers, rows, layers)
        self._count(self.changed, layers - 1)
        self._hold(rows, layers)
        return found[torch.isin(rows, self.changed)]

    def salience(self) -> Tensor:
        """How much attention the `changed` tokens get, a mean over layers and heads: ``[changed]``,
        1 on average.

        From the text behind the composition, if there is any: that is the question. Else from a
        sample of the composition, read behind it once more. Costs reading that, and the text.
        """
        self.read()
        state, left = self.state, self.layout.left
        scorer = AttentionScorer(recent=len(left))
        if len(left) >= _QUESTION:
            state = replace(state, scores={scorer: look_back(state, scorer, left)})
        else:
            scorer = AttentionScorer()
        seen = salience(state, scorer)
        return torch.stack([at.mean(0).cpu() for at in seen]).mean(0)[self.changed]

    def compute(self, rows: Tensor, narrowing: Narrowing | None = None) -> None:
        """Compute the `text`, and tokens ``rows`` of cards, which ascend, anew. Of these only some
        go on where there is a ``narrowing``.

        Raises `UnsupportedModelError` where a sliding layer has forgotten what they look at, or
        this model cannot leave out rows on its way.
        """
        whole = self._with_text(rows)
        if not len(whole):
            return
        self.require_seen(whole)
        if narrowing is not None:
            chosen = narrowing.choose

            def choose(some: Tensor, found: Tensor) -> Tensor:
                """Text goes on in any case."""
                ours = torch.isin(some, rows).nonzero()[:, 0]
                kept = torch.ones(len(some), dtype=torch.bool)
                kept[ours] = False
                kept[ours[chosen(some[ours], found[ours])]] = True
                return kept.nonzero()[:, 0]

            narrowing = Narrowing(narrowing.layers, choose)
        done = compute_rows(self.model, self.layout.ids, self.buffers, whole, narrowing=narrowing)
        kept = done[torch.isin(done, rows)]
        early = 0 if narrowing is None else narrowing.layers
        self._count(rows, early)
        self._count(kept, len(self.buffers) - early)
        self._hold(whole, early)
        self._hold(done, len(self.buffers))
        self.anew[kept] = True

    def require_seen(self, rows: Tensor) -> None:
        """Raise `UnsupportedModelError` where a layer has forgotten a token that one of ``rows``
        looks at, or what is read behind the composition."""
        computed = torch.zeros(self.layout.cached, dtype=torch.bool)
        computed[rows] = True
        computed[self.text] = True  # before anything that looks at them
        queries = torch.cat([rows, torch.tensor([self.layout.cached])])
        for number, (held, layer) in enumerate(
            zip(self.held, observe(self.model).layers, strict=True)
        ):
            missing = (~held & ~computed).nonzero()[:, 0]
            if not len(missing):
                continue
            # The next query behind each missing token.
            nearest = queries[torch.searchsorted(queries, missing)]
            if (nearest - missing < (layer.window or self.layout.cached + 1)).any():
                raise UnsupportedModelError(
                    f"layer {number} looks back {layer.window} tokens, and has forgotten "
                    f"{len(missing)} of those in the middle of the composition. Capture parts "
                    "that are shorter than the window, or give them as text."
                )

    def _with_text(self, rows: Tensor) -> Tensor:
        return torch.cat([self.text, rows]).sort().values

    def _hold(self, rows: Tensor, layers: int) -> None:
        for held in self.held[:layers]:
            held[rows] = True

    def _count(self, rows: Tensor, layers: int) -> None:
        self.cost += len(rows) * layers / max(1, len(self.changed) * len(self.buffers))
