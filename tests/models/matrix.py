"""What a card does with each causal class of the installed transformers, and docs/models.md of it.

``python -m tests.models.matrix`` prints the results; with ``--write`` it writes the page, and with
names it looks at these alone.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qkvshare import CacheCard, Packed, QKVShareError, Raw, capture, capture_cache
from tests.models.refused import EXPECTED_REFUSED
from tests.models.tiny import KNOWN_UNBUILDABLE, NAMES, WINDOW, greedy, some_ids, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
CONTEXT = 72
NEW = 5
TOKENS = 24
assert CONTEXT > 2 * WINDOW


@dataclass(frozen=True)
class Result:
    """``what`` is "equal", "refused", "unbuildable", "unbuilt", "differs" or "crash".

    Known models are "unbuildable"; "unbuilt" is one that tests.models.tiny has yet to learn of.
    """

    name: str
    what: str
    why: str = ""
    layers: str = ""
    keys: str = ""

    @property
    def model(self) -> str:
        """The name of the model's class."""
        found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.name]
        return found if isinstance(found, str) else found[0]


class Differs(Exception):
    """A text after a hand-off is not the text without one."""


def _same(step: str, said: list[int], expected: list[int]) -> None:
    if said != expected:
        pairs = zip(said, expected, strict=True)
        place = next(i for i, (token, right) in enumerate(pairs) if token != right)
        raise Differs(f"{step}: another token at place {place} of {len(expected)}")


def _native(model: Any, ids: list[int]) -> list[int]:
    """The text without a hand-off."""
    rows = torch.tensor([ids])
    return greedy(model, TOKENS, input_ids=rows, attention_mask=torch.ones_like(rows))[0]


def _loaded(card: CacheCard) -> CacheCard:
    """The same card after a way through a file."""
    with tempfile.TemporaryDirectory() as folder:
        return CacheCard.load(card.save(Path(folder) / "it.card"))


def _live(model: Any, ids: list[int]) -> Any:
    """The cache that ``generate`` made of these ids."""
    rows = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            use_cache=True,
            max_new_tokens=1,
            pad_token_id=0,
            return_dict_in_generate=True,
        )
    return getattr(out, "past_key_values", None) or getattr(out, "cache_params", None)


def _kinds(model: Any, ids: list[int]) -> str:
    """The classes of the layers of the model's own cache."""
    kinds = [type(layer).__name__ for layer in getattr(_live(model, ids), "layers", [])]
    return ", ".join(dict.fromkeys(kinds)) or "no cache"


def _generated(card: CacheCard, model: Any, new: list[int]) -> Any:
    with torch.no_grad():
        return model.generate(
            **card.inputs(model, new=new),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
        )


def _said(out: Any) -> list[int]:
    return out.sequences[0, -TOKENS:].tolist()


def _hand_over(model: Any, ids: list[int], raw: CacheCard) -> CacheCard:
    """Everything a card can do; raises `Differs` or what was raised. Returns the default card."""
    new, more = some_ids(model, NEW, seed=3), some_ids(model, NEW, seed=4)
    expected = _native(model, ids + new)

    raw = _loaded(raw)
    out = _generated(raw, model, new)
    _same("raw", _said(out), expected)

    longer = _loaded(raw.extend(model, out))
    whole = [*map(int, longer.token_ids), *more]
    _same("append", _said(_generated(longer, model, more)), _native(model, whole))

    live = capture_cache(model, _live(model, ids), ids, codec=Raw())
    _same("live cache", _said(_generated(live, model, new)), expected)

    packed = _loaded(capture(model, None, ids, codec=Packed()))
    if packed.manifest.layers and not math.isfinite(packed.bits_per_value):
        raise Differs(f"packed: {packed.bits_per_value} bits per value")
    if len(_said(_generated(packed, model, new))) != TOKENS:
        raise Differs("packed: no text")
    return packed


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/qkvshare/" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def check(name: str) -> Result:
    """What a card does with the tiny model of this name."""
    if name in KNOWN_UNBUILDABLE:
        return Result(name, "unbuildable", KNOWN_UNBUILDABLE[name])
    try:
        model = tiny_model(name)
        ids = some_ids(model, CONTEXT, seed=1)
        kinds = _kinds(model, ids)
    except Exception as error:
        return Result(name, "unbuilt", f"{type(error).__name__}: {error}")
    try:
        # Only here may it be refused: who has a card can rely on it.
        raw = capture(model, None, ids, codec=Raw())
    except QKVShareError as error:
        return Result(name, "refused", f"{type(error).__name__}: {error}", kinds)
    except Exception as error:
        return Result(name, "crash", f"{type(error).__name__}: {error} @ {_place(error)}", kinds)
    try:
        card = _hand_over(model, ids, raw)
    except Differs as error:
        return Result(name, "differs", str(error), kinds)
    except Exception as error:
        return Result(name, "crash", f"{type(error).__name__}: {error} @ {_place(error)}", kinds)
    layers, states = card.manifest.layers, card.manifest.states
    kinds = ", ".join(dict.fromkeys(part.kind for part in [*layers, *states]))
    placed = {layer.placed for layer in layers}
    which = {(): "none", (False,): "before RoPE", (True,): "as cached"}
    keys = which.get(tuple(placed), "both")
    return Result(name, "equal", "", kinds, keys)


_HEAD = """\
<!-- Written by `python -m tests.models.matrix --write`; do not edit. -->
# Models

A tiny random model of each class that `AutoModelForCausalLM` of transformers {version} knows reads
a context that is longer than its windows. It then goes on from a card, and from the whole text.
Of {all} names:

- {equal} are *equal*: `raw` cards give the same {tokens} tokens, also after an append and when the
  card is made of a live cache, and a `packed` card gives a text.
- {refused} are *refused* before anything is handed over.
- {unbuildable} are *unbuildable*: there is no tiny model of them here.

*Layers* are the kinds of state in the card. Where a model is refused, they are the classes of
layers in the model's own cache. *Keys* tells whether codecs encode the keys as they are before
RoPE, or as the model caches them. A model without attention has none.

| Name | Class | Result | Layers | Keys | Why |
|---|---|---|---|---|---|
"""


def head(found: list[str]) -> str:
    """What stands before the rows, with the counts of these results."""
    counts = {kind: found.count(kind) for kind in ("equal", "refused", "unbuildable")}
    return _HEAD.format(version=transformers.__version__, all=len(found), tokens=TOKENS, **counts)


def row(result: Result) -> str:
    """The line of the table."""
    why = EXPECTED_REFUSED.get(result.name, result.why)
    cells = (f"`{result.name}`", f"`{result.model}`", result.what, result.layers, result.keys, why)
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    names = [a for a in arguments if a != "--write"] or NAMES
    results = []
    for name in names:
        results.append(check(name))
        print(*vars(results[-1]).values(), sep=" | ", flush=True)
    print(Counter(result.what for result in results))
    if "--write" in arguments:
        text = head([result.what for result in results])
        PAGE.write_text("\n".join([text + row(results[0]), *map(row, results[1:]), ""]), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
