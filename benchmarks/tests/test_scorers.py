"""One matrix for all scorers, of this package and of ours: a new one comes by its entry point."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import torch

from benchmarks.scorers import Accumulated, Expected, KeyNorm, Normalized, Reconstruction
from qkvshare.card.errors import CodecError
from qkvshare.scoring import AttentionScorer, Scorer, find_scorer, make_scorer
from tests.test_scoring import attention_by_hand, make_probe

NAMES = sorted(entry_points(group="qkvshare.scorers").names)  # the same order in all processes
SCORERS_UNDER_TEST: list[Scorer] = [AttentionScorer(), *map(make_scorer, NAMES)]


@pytest.mark.parametrize("scorer", SCORERS_UNDER_TEST, ids=str)
@pytest.mark.parametrize(("tokens", "probes"), [(1, 1), (40, 5)])
def test_shape_and_sign(scorer: Scorer, tokens: int, probes: int) -> None:
    found = scorer.score(make_probe(tokens, probes))
    assert found.shape == (2, tokens)
    assert (found >= 0).all()
    assert torch.isfinite(found).all()


def test_sums_and_means_of_attention() -> None:
    probe = make_probe(40, 5)
    weights = attention_by_hand(probe)[..., :40]
    assert torch.allclose(Accumulated().score(probe), 3 * weights.sum(1), atol=1e-5)
    assert torch.allclose(Normalized().score(probe), weights.mean(1), atol=1e-6)
    assert torch.allclose(
        Reconstruction().score(probe).sum(), probe.attention()[..., :40].amax((1, 2)).sum()
    )
    plain = AttentionScorer(local=0, shared=0.0, recent=0).score(probe)
    expected = weights.mean(1) / weights.mean((1, 2))[:, None]
    assert torch.allclose(plain, expected, atol=1e-5)


def test_expected_attention_of_queries_that_are_all_the_same() -> None:
    """Without spread and without positions it is the attention of that query."""
    probe = make_probe(40, 6)
    same = probe.queries[:, :, :1].expand(-1, -1, 6, -1)
    probe = replace(probe, queries=same)
    logits = torch.einsum("hgd,htd->hgt", same[:, :, 0], probe.keys[:, :40]) * 0.25
    expected = torch.softmax(logits, -1).mean(1)
    assert torch.allclose(Expected(future=3).score(probe), expected, atol=1e-6)


@pytest.mark.parametrize("scorer", SCORERS_UNDER_TEST, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 1000])
def test_probes_ascend_within_the_context(scorer: Scorer, tokens: int) -> None:
    probes = scorer.probes(tokens)
    assert (probes.diff() > 0).all()
    assert ((probes >= 0) & (probes < tokens)).all()


def test_names() -> None:
    assert set(NAMES) >= {"accumulated", "random", "recency", "window"}
    assert find_scorer("key-norm") is KeyNorm
    with pytest.raises(CodecError, match=r"no scorer 'best'; known: accumulated, attention, exp"):
        find_scorer("best")
    with pytest.raises(CodecError, match="is no parameter of"):
        make_scorer("key-norm:x=1")
