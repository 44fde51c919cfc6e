"""Large pages are used again, but never while anybody looks at them."""

from __future__ import annotations

import gc

import pytest
import torch

from qkvshare.codecs import Shape
from qkvshare.hf.cache import pages as module
from qkvshare.hf.cache.buffers import Buffer, allocate
from qkvshare.hf.cache.pages import LARGE, pages


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    gc.collect()
    module.forget()


def test_what_is_dropped_is_used_again() -> None:
    first = pages(LARGE)
    place = first.fill_(1).data_ptr()
    del first
    assert pages(LARGE - 100).data_ptr() == place


def test_what_somebody_looks_at_is_not() -> None:
    first = pages(LARGE).fill_(7)
    part = first[5:500].view(5, 99)[2]
    del first
    gc.collect()
    pages(LARGE).fill_(1)
    assert (part == 7).all()


def test_no_more_is_kept_than_promised() -> None:
    many = [pages(LARGE) for _ in range(module.KEPT // LARGE + 3)]
    many.append(pages(LARGE + 1))  # of no use to others
    del many
    assert len(module._kept) == module.KEPT // LARGE


def test_small_ones_are_ordinary() -> None:
    assert len(pages(1000)) == 1000
    assert not module._kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_do_not_overlap(dtype: torch.dtype) -> None:
    """Layers of any size, some larger than what comes together."""
    shapes = [Shape(2, tokens, 64, 96) for tokens in (3, 70_000, 0, 41, 9000, 9000)]
    found = allocate([Buffer(shape, dtype, torch.device("cpu")) for shape in shapes])
    for number, (shape, buffer) in enumerate(zip(shapes, found, strict=True)):
        assert buffer.shape == shape
        assert buffer.keys.dtype == buffer.values.dtype == dtype
        buffer.keys.fill_(2 * number)
        buffer.values.fill_(2 * number + 1)
    for number, buffer in enumerate(found):
        assert (buffer.keys == 2 * number).all()
        assert (buffer.values == 2 * number + 1).all()
