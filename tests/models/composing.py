"""Which classes of the installed transformers can compose: ``python -m tests.models.composing``.

Two parts of cards come behind another prompt. With all of their tokens computed anew, the logits
must be those of reading the text.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from typing import Any

import torch

from qkvshare import QKVShareError, Raw, Span, capture, compose
from qkvshare.hf.compose.repairs import All
from tests.models.refused import EXPECTED_REFUSED
from tests.models.tiny import KNOWN_UNBUILDABLE, NAMES, some_ids, tiny_model


def check(name: str) -> str:
    """ "equal", "differs", or why the model is refused."""
    model: Any = tiny_model(name)
    before, one, two, new = (some_ids(model, count, seed=count) for count in (5, 12, 10, 4))
    try:
        a = capture(model, None, one, codec=Raw())
        b = capture(model, None, [*before[:2], *two], codec=Raw())
        parts = [before, a, Span(b, 2), new]
        composed = compose(model, parts, repair=All(), new_only=True).inputs
        whole = capture(model, None, [*before, *one, *two], codec=Raw())
        with torch.no_grad():
            found = model(**composed).logits
            expected = model(**whole.inputs(model, new=new, new_only=True)).logits
    except QKVShareError as error:
        return str(error)
    return "equal" if (found - expected).norm() < 1e-4 * expected.norm() else "differs"


def main(names: list[str]) -> None:
    """Print a line for each class that cannot, and how many there are of each."""
    counts = Counter[str]()
    for name in names or [*NAMES]:
        if name in KNOWN_UNBUILDABLE or name in EXPECTED_REFUSED:
            continue
        what = check(name)
        counts[what if what in ("equal", "differs") else "refused"] += 1
        if what != "equal":
            print(f"{name}: {what}")
    print(dict(counts))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
