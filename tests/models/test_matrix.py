"""Each causal class of the installed transformers: a card serves it or refuses it."""

from __future__ import annotations

import re

import pytest
import transformers

from .matrix import PAGE, check, head, row
from .refused import EXPECTED_REFUSED
from .tiny import KNOWN_UNBUILDABLE, NAMES

_PAGE = PAGE.read_text(encoding="utf-8")
_SAME_VERSION = f"transformers {transformers.__version__} " in _PAGE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_card_serves_the_model_or_refuses_it(name: str) -> None:
    result = check(name)
    if not _SAME_VERSION:
        # Another version may know more classes, and what it refuses may be different.
        if result.what == "unbuilt":
            pytest.skip(f"tests.models.tiny does not know it: {result.why}")
        assert result.what in {"equal", "refused", "unbuildable"}, result.why
        return
    if name in KNOWN_UNBUILDABLE:
        assert result.what == "unbuildable"
    else:
        assert result.what == ("refused" if name in EXPECTED_REFUSED else "equal"), result.why
    assert row(result) in _PAGE.splitlines(), f"{PAGE.name} is not of this code: write it again"


@pytest.mark.skipif(not _SAME_VERSION, reason="the page is of another version of transformers")
def test_the_page_has_each_name_once_and_counts_right() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `[^`]+` \| (\w+) \|", _PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == NAMES
    assert _PAGE.startswith(head([what for _, what in rows]))


def test_a_model_is_not_said_to_be_both_unbuildable_and_refused() -> None:
    assert not EXPECTED_REFUSED.keys() & KNOWN_UNBUILDABLE.keys()
