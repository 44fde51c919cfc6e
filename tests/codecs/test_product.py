"""Products of matrices: what they are, and that threads change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qkvshare.codecs import product

SHAPES = [
    (1, (3,)),
    (7, (8, 16)),
    (33, (24, 48, 48)),
    (700, (192, 384, 384)),
    (8192, (384, 384)),
    (96, (1024, 2048)),
]


@pytest.fixture(params=[True, False], ids=["native", "float32"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Torch multiplies bfloat16 on any processor, if slowly."""
    monkeypatch.setattr(product, "native", lambda: request.param)
    threads = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(threads)


def pairs(rows: int, widths: tuple[int, ...], columns: int = 192) -> list[tuple[Tensor, Tensor]]:
    """Each of the features is a part of something wider."""
    found = torch.Generator().manual_seed(rows)
    return [
        (
            torch.randn(rows, wide + 8, generator=found).bfloat16()[:, :wide],
            (torch.randn(wide, columns, generator=found) / wide**0.5).bfloat16(),
        )
        for wide in widths
    ]


@pytest.mark.parametrize(("rows", "widths"), SHAPES)
def test_the_sum_of_products(path: bool, rows: int, widths: tuple[int, ...]) -> None:
    given = pairs(rows, widths)
    out = product.summed(given)
    exact = sum(a.double() @ b.double() for a, b in given)
    assert out.dtype == torch.float32
    # A bfloat16 has 8 bits; what is rounded first is rounded again.
    times = sum(-(-wide // product.SHORT) for wide in widths)
    assert (out - exact).abs().max() <= 2**-8 * times * exact.abs().max()
    assert torch.equal(out, out.bfloat16().float())


@pytest.mark.parametrize(("rows", "widths"), SHAPES)
def test_threads_change_nothing(path: bool, rows: int, widths: tuple[int, ...]) -> None:
    given = pairs(rows, widths)
    torch.set_num_threads(1)
    one = product.summed(given)
    for threads in (2, 3, 5, 16):
        torch.set_num_threads(threads)
        assert torch.equal(product.summed(given), one)


def test_float32_is_added_to_what_is_there() -> None:
    threads = torch.get_num_threads()
    a, b, out = torch.randn(33, 1024), torch.randn(1024, 192), torch.randn(33, 192)
    found = []
    for count in (1, 2, 3, 5, 16):
        torch.set_num_threads(count)
        found.append(product.add(out.clone(), a, b))
    torch.set_num_threads(threads)
    torch.testing.assert_close(found[0], out + a @ b, atol=1e-3, rtol=1e-4)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_both_ways_give_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = pairs(700, (192, 384, 384))
    monkeypatch.setattr(product, "native", lambda: True)
    one = product.summed(given)
    monkeypatch.setattr(product, "native", lambda: False)
    other = product.summed(given)
    # Where a sum is nearly halfway between two numbers its order decides.
    assert (one != other).float().mean() < 0.01
    assert ((one - other).abs() <= 2**-6 * one.abs().clamp(min=0.1)).all()
