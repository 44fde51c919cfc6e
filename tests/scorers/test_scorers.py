"""One matrix for all scorers: a new one adds one line to `SCORERS_UNDER_TEST`."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from qkvshare.card.errors import CodecError
from qkvshare.scorers import (
    SCORERS,
    Accumulated,
    Attention,
    Expected,
    Glance,
    KeyNorm,
    Normalized,
    Recency,
    Reconstruction,
    Scorer,
    Sight,
    Window,
    find_scorer,
    label_scorer,
    make_scorer,
    parts_of,
)

SCORERS_UNDER_TEST: list[Scorer] = [kind() for kind in SCORERS.values()]


def make_glance(tokens: int, probes: int, behind: bool = True) -> Glance:
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(2, 3, probes, 16, generator=generator)
    total = tokens + probes if behind else tokens
    keys = torch.randn(2, total, 16, generator=generator)
    visible = torch.ones(probes, total, dtype=torch.bool).tril(total - probes)
    return Glance(queries, keys, Sight(visible), 0.25, tokens, lambda x, _: x)


def test_matrix_is_complete() -> None:
    assert {scorer.name for scorer in SCORERS_UNDER_TEST} == set(SCORERS)


@pytest.mark.parametrize("scorer", SCORERS_UNDER_TEST, ids=str)
@pytest.mark.parametrize(("tokens", "probes"), [(1, 1), (40, 5)])
def test_shape_and_sign(scorer: Scorer, tokens: int, probes: int) -> None:
    found = scorer.score(make_glance(tokens, probes))
    assert found.shape == (2, tokens)
    assert (found >= 0).all()
    assert torch.isfinite(found).all()


def attention_by_hand(glance: Glance) -> torch.Tensor:
    """``[kv_heads, probes, keys]``, the mean over the query heads of a group."""
    probes, total = glance.sight.visible.shape
    out = torch.zeros(2, probes, total)
    for head in range(2):
        for query in range(3):
            for probe in range(probes):
                seen = total - probes + probe + 1
                logits = glance.keys[head, :seen] @ glance.queries[head, query, probe] * 0.25
                out[head, probe, :seen] += torch.softmax(logits, 0) / 3
    return out


def test_sums_and_means_of_attention() -> None:
    glance = make_glance(40, 5)
    weights = attention_by_hand(glance)[..., :40]
    assert torch.allclose(Accumulated().score(glance), 3 * weights.sum(1), atol=1e-5)
    assert torch.allclose(Normalized().score(glance), weights.mean(1), atol=1e-6)
    assert torch.allclose(
        Reconstruction().score(glance).sum(), glance.attention()[..., :40].amax((1, 2)).sum()
    )
    plain = Attention(local=0, shared=0.0, recent=0).score(glance)
    expected = weights.mean(1) / weights.mean((1, 2))[:, None]
    assert torch.allclose(plain, expected, atol=1e-5)


def test_a_probe_says_nothing_of_its_neighbours() -> None:
    glance = make_glance(40, 40, behind=False)
    score = Attention(local=4, recent=0, shared=0.0).score(glance)
    weights = attention_by_hand(glance)
    age = torch.arange(40)[:, None] - torch.arange(40)
    far = age >= 4
    expected = (weights * far).sum(1) / far.sum(0).clamp(min=1)
    assert torch.allclose(score, expected / expected.mean(1, keepdim=True), atol=1e-5)
    assert (score[:, -4:] == 0).all()
    newest = Attention(local=4, recent=3, shared=0.0).score(glance)
    assert (newest > 0).all()


def test_sharing() -> None:
    glance = make_glance(40, 5)
    own = Attention(shared=0.0).score(glance)
    assert not torch.allclose(own[0], own[1])
    same = Attention(shared=1.0).score(glance)
    assert torch.allclose(same[0], same[1])


def test_expected_attention_of_queries_that_are_all_the_same() -> None:
    """Without spread and without positions it is the attention of that query."""
    glance = make_glance(40, 6)
    same = glance.queries[:, :, :1].expand(-1, -1, 6, -1)
    glance = replace(glance, queries=same)
    logits = torch.einsum("hgd,htd->hgt", same[:, :, 0], glance.keys[:, :40]) * 0.25
    expected = torch.softmax(logits, -1).mean(1)
    assert torch.allclose(Expected(future=3).score(glance), expected, atol=1e-6)


@pytest.mark.parametrize("scorer", SCORERS_UNDER_TEST, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 1000])
def test_probes_ascend_within_the_context(scorer: Scorer, tokens: int) -> None:
    probes = scorer.probes(tokens)
    assert (probes.diff() > 0).all()
    assert ((probes >= 0) & (probes < tokens)).all()


def test_texts_and_labels() -> None:
    assert make_scorer("attention:count=8,shared=0.25") == Attention(count=8, shared=0.25)
    both = make_scorer("window+recency:half_life=64")
    assert parts_of(both) == (Window(), Recency(half_life=64.0))
    assert label_scorer(both) == "window+recency:half_life=64"
    assert label_scorer(Attention(count=8)) == "attention:count=8"
    for wrong in ("attention:depth=3", "attention:count=many", "key-norm:x=1"):
        with pytest.raises(CodecError, match="is no parameter of"):
            make_scorer(wrong)


def test_names() -> None:
    assert find_scorer("key-norm") is KeyNorm
    with pytest.raises(
        CodecError, match=r"no scorer 'best'; known: accumulated, attention, expected,"
    ):
        find_scorer("best")


def test_memory_goes_with_the_layers_that_share_it() -> None:
    """Attention's matrix is as large as a context: nothing keeps it when capture is done."""
    sight = Sight(torch.ones(4, 9, dtype=torch.bool).tril(5))
    queries, keys = torch.randn(1, 2, 4, 8), torch.randn(1, 9, 8)
    Attention().score(Glance(queries, keys, sight, 1.0, 9, lambda x, _: x))
    gone = weakref.ref(sight)
    del sight
    gc.collect()
    assert gone() is None
