"""How a part of the transform's basis is fitted."""

from __future__ import annotations

import torch

from qkvshare.codecs.fitting import _fit_part


def test_a_token_that_counts_twice_is_there_twice() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(400, 8, generator=draw)
    x = features @ torch.randn(8, 6, generator=draw) + torch.randn(400, 6, generator=draw) + 3
    weight, twice = torch.rand(6, generator=draw) + 0.5, torch.arange(400) % 3 == 0
    shares = 1.0 + twice
    order = torch.cat([torch.arange(400), torch.arange(400)[twice]])
    one = _fit_part(x, [features], weight, shares / shares.mean())
    two = _fit_part(x[order], [features[order]], weight, torch.ones(len(order)))
    torch.testing.assert_close(one.predictor, two.predictor, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(one.mean, two.mean, atol=5e-3, rtol=5e-3)
    same = (one.forward.T @ two.forward).abs() / (two.forward.T @ two.forward).diagonal()
    torch.testing.assert_close(same.diagonal(), torch.ones(6), atol=2e-2, rtol=2e-2)
    plain = _fit_part(x, [features], weight, torch.ones(400))
    assert not torch.allclose(plain.predictor, two.predictor, atol=2e-3, rtol=2e-3)
