"""The test models must deserve their trust: another context, another text."""

from __future__ import annotations

import pytest

from .conftest import FAMILIES, greedy_from_text, some_ids, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_models_depend_on_their_context(family: str) -> None:
    model = tiny_model(family)
    ids = some_ids(40)
    said = greedy_from_text(model, ids)
    assert len(set(said)) > 3
    # far enough back to be out of every layer's window of 8, near enough for three such layers
    assert greedy_from_text(model, [*ids[:25], ids[25] + 1, *ids[26:]]) != said
