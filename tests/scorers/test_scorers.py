"""One matrix for all scorers: a new one adds one line to `SCORERS_UNDER_TEST`."""

from __future__ import annotations

import pytest
import torch

from qkvshare.card.errors import CodecError
from qkvshare.scorers import SCORERS, Attention, Glance, KeyNorm, Scorer, find_scorer

SCORERS_UNDER_TEST: list[Scorer] = [Attention(), KeyNorm()]


def make_glance(tokens: int, probes: int) -> Glance:
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(2, 3, probes, 16, generator=generator)
    keys = torch.randn(2, tokens + probes, 16, generator=generator)
    visible = torch.ones(probes, tokens + probes, dtype=torch.bool).tril(tokens)
    return Glance(queries, keys, visible, 0.25, tokens)


def test_matrix_is_complete() -> None:
    assert {scorer.name for scorer in SCORERS_UNDER_TEST} == set(SCORERS)


@pytest.mark.parametrize("scorer", SCORERS_UNDER_TEST, ids=str)
@pytest.mark.parametrize(("tokens", "probes"), [(1, 1), (40, 5)])
def test_shape_and_sign(scorer: Scorer, tokens: int, probes: int) -> None:
    found = scorer.score(make_glance(tokens, probes))
    assert found.shape == (2, tokens)
    assert (found >= 0).all()
    assert torch.isfinite(found).all()


def test_attention_is_the_models_own() -> None:
    glance = make_glance(40, 5)
    expected = torch.zeros(2, 40)
    for head in range(2):
        for query in range(3):
            for probe in range(5):
                seen = 40 + probe + 1
                logits = glance.keys[head, :seen] @ glance.queries[head, query, probe] * 0.25
                expected[head] += torch.softmax(logits, 0)[:40] / 15
    assert torch.allclose(Attention().score(glance), expected, atol=1e-6)


def test_names() -> None:
    assert find_scorer("key-norm") is KeyNorm
    with pytest.raises(CodecError, match=r"no scorer 'best'; known: attention, key-norm"):
        find_scorer("best")
