"""``qkvshare check``: whether cards work with a model."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files

import typer

from ..card import Layer, StateTensor
from ..card.geometry import state_nbytes
from .options import Model, progress, say
from .tables import print_table

_CONTEXT = 256  # tokens


def check(model: Model = "smollm2-135m") -> None:
    """Check that a model goes on from a card as it does from the text."""
    with progress.status("loading the model …"):
        from ..hf.check import cache_bytes
        from ..hf.check import check as compare
        from ..hf.model.load import load_model
        from ..hf.text.tokens import ids_of

        loaded, tokenizer = load_model(model)
    with progress.status("handing over, and reading …"):
        text = (files("qkvshare.cli") / "manual.txt").read_text()
        ids = ids_of(tokenizer, text)[: _CONTEXT + 8]
        found = compare(loaded, ids[:-8], ids[-8:])
    size = cache_bytes(found.layers, loaded.dtype)
    say(f"{type(loaded).__name__} in {loaded.dtype}: {size:,} bytes a token in its own cache")
    rows = [(str(count), *kind) for kind, count in Counter(map(_kind, found.layers)).items()]
    print_table(["layers", "kind", "KV heads", "head dims", "positions"], rows, keys=2)
    if found.states:
        kinds = Counter((at.kind, _shape(at), at.dtype) for at in found.states)
        rows = [(str(count), *kind) for kind, count in kinds.items()]
        print_table(["states", "kind", "shape", "format"], rows, keys=2)
        here = [at.after(len(ids) - 9) for at in found.states]
        exact, rounded = (state_nbytes(here, bits) for bits in (None, 8))
        say(f"states: {exact:,} bytes in each segment, {rounded:,} at 8 bits a number")
    rows = [
        (name, f"{bits:.2f} bits a value" if isinstance(bits, float) else bits)
        for name, bits in found.bits.items()
    ]
    print_table(["codec", f"card of {len(ids) - 8} tokens"], rows)
    if found.differs is None:
        say("hand-off: equal to going on from the text")
        return
    where = "no layer" if found.layer is None else f"layer {found.layer}"
    say(f"hand-off: differs at token {found.differs}; {where} has other keys or values")
    raise typer.Exit(1)


def _shape(state: StateTensor) -> str:
    shape = "×".join(map(str, state.shape))
    if state.every is None:
        return shape
    return f"{shape} for {'every' if state.kind == 'compressed' else 'up to'} {state.every} tokens"


def _kind(layer: Layer) -> tuple[str, ...]:
    window = "" if layer.window is None else f" (window {layer.window:,})"
    dims = {layer.head_dim, layer.v_head_dim}
    return (
        layer.kind + window,
        str(layer.kv_heads),
        " and ".join(map(str, sorted(dims))),
        "in the keys" if layer.placed else "taken out of the keys",
    )
