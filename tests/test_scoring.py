"""What capture scores tokens by."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from qkvshare.card.errors import CodecError
from qkvshare.registry import label
from qkvshare.scoring import AttentionProbe, AttentionScorer, Visibility, make_scorer


def make_probe(tokens: int, probes: int, behind: bool = True) -> AttentionProbe:
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(2, 3, probes, 16, generator=generator)
    total = tokens + probes if behind else tokens
    keys = torch.randn(2, total, 16, generator=generator)
    visible = torch.ones(probes, total, dtype=torch.bool).tril(total - probes)
    return AttentionProbe(queries, keys, Visibility(visible), 0.25, tokens, lambda x, _: x)


def attention_by_hand(probe: AttentionProbe) -> torch.Tensor:
    """``[kv_heads, probes, keys]``, the mean over the query heads of a group."""
    probes, total = probe.visibility.visible.shape
    out = torch.zeros(2, probes, total)
    for head in range(2):
        for query in range(3):
            for number in range(probes):
                seen = total - probes + number + 1
                logits = probe.keys[head, :seen] @ probe.queries[head, query, number] * 0.25
                out[head, number, :seen] += torch.softmax(logits, 0) / 3
    return out


def test_a_probe_says_nothing_of_its_neighbours() -> None:
    probe = make_probe(40, 40, behind=False)
    score = AttentionScorer(local=4, recent=0, shared=0.0).score(probe)
    weights = attention_by_hand(probe)
    age = torch.arange(40)[:, None] - torch.arange(40)
    far = age >= 4
    expected = (weights * far).sum(1) / far.sum(0).clamp(min=1)
    assert torch.allclose(score, expected / expected.mean(1, keepdim=True), atol=1e-5)
    assert (score[:, -4:] == 0).all()
    newest = AttentionScorer(local=4, recent=3, shared=0.0).score(probe)
    assert (newest > 0).all()


def test_sharing() -> None:
    probe = make_probe(40, 5)
    own = AttentionScorer(shared=0.0).score(probe)
    assert not torch.allclose(own[0], own[1])
    same = AttentionScorer(shared=1.0).score(probe)
    assert torch.allclose(same[0], same[1])


def test_texts_and_labels() -> None:
    assert make_scorer("attention:count=8,shared=0.25") == AttentionScorer(count=8, shared=0.25)
    assert label(AttentionScorer(count=8)) == "attention:count=8"
    for wrong in ("attention:depth=3", "attention:count=many"):
        with pytest.raises(CodecError, match="is no parameter of"):
            make_scorer(wrong)


def test_memory_goes_with_the_layers_that_share_it() -> None:
    """Attention's matrix is as large as a context: nothing keeps it when capture is done."""
    visibility = Visibility(torch.ones(4, 9, dtype=torch.bool).tril(5))
    queries, keys = torch.randn(1, 2, 4, 8), torch.randn(1, 9, 8)
    AttentionScorer().score(AttentionProbe(queries, keys, visibility, 1.0, 9, lambda x, _: x))
    gone = weakref.ref(visibility)
    del visibility
    gc.collect()
    assert gone() is None
