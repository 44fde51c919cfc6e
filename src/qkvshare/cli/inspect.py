"""``qkvshare inspect``: what a card says of itself, from its header only."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table
from rich.text import Text

from ..card import CacheCard
from ..card.errors import OutputError
from ..card.files import replace
from . import plain
from .options import Card, Json, KeyFile, key_of, out, say, writable

_FORMS = (".png", ".svg", ".pdf")


def drawable(plot: Path | None) -> Path | None:
    """`writable`, for a plot: its name also says in which form it is drawn."""
    if plot is not None and plot.suffix.lower() not in _FORMS:
        raise OutputError(f"{plot} cannot be drawn; expected a name in {', '.join(_FORMS)}.")
    return writable(plot)


_ROWS = 50  # of a table


def inspect(
    card: Card,
    json: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            callback=drawable, help="Draw bits per token and per layer (PNG, SVG or PDF)."
        ),
    ] = None,
    key: KeyFile = None,
) -> None:
    """Show a card's contents; reads the header only."""
    from ..codecs.spent import sizes as sizes_of

    known = CacheCard.load(card, key=key_of(key))
    sizes = sizes_of(known)
    if json != "-":
        _print(known, sizes)
    if json is not None:
        _write_json(json, known, sizes)
    if plot is not None:
        _plot(known, plot)


def _print(card: CacheCard, sizes: dict[str, int]) -> None:
    manifest, identity = card.manifest, card.manifest.identity
    rows: list[tuple[str, str]] = []

    def row(name: str, value: str) -> None:
        rows.append((name, plain(value)))

    row("card", card.digest)
    row("created", f"{manifest.created:%Y-%m-%d %H:%M:%S} UTC")
    row("sealed", "yes" if card.sealed else "no")
    signature = card.signature
    row("signature", "none" if signature is None else f"{signature.key} (not checked)")
    if manifest.salt is not None:
        row("salt", manifest.salt)
    if manifest.expires is not None:
        row("expires", f"{manifest.expires:%Y-%m-%d %H:%M:%S} UTC")
    row("tokens", f"{card.tokens:,}")
    row("size", f"{card.nbytes:,} bytes, {card.bits_per_value:.3f} bits per value")
    row("", ", ".join(f"{k} {v:,}" for k, v in sizes.items() if v and k != "total"))
    kinds = Counter(f"{at.kind} {at.kv_heads}×{at.head_dim}" for at in manifest.layers)
    row("layers", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    for name, value in msgspec.structs.asdict(identity).items():
        row(name.replace("_", " "), "none" if value is None else str(value))
    for run in manifest.runs:
        made = f"{run.codec.name} {run.codec.parameters or ''}"
        if run.codec.profile is not None:
            made += f", profile {run.codec.profile}"
        if run.segment < card.thin:
            made += ", not in this file"
        row(f"segment {run.segment}", f"tokens [{run.start}, {run.end}), {made}")
    for hop in manifest.lineage:
        whence = "read from scratch" if hop.parent is None else f"from {hop.parent[:12]}…"
        row(f"hop {hop.hop}", f"{hop.agent or '—'}: {hop.tokens_added} tokens, {whence}")
    width = max(len(name) for name, _ in rows)
    # A table takes time with the square of its rows, and a long chain has thousands.
    for start in range(0, len(rows), _ROWS):
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(width=width)
        table.add_column(overflow="fold")
        for name, value in rows[start : start + _ROWS]:
            table.add_row(name, Text(value))  # a Text has no markup
        out.print(table)


def _write_json(target: str, card: CacheCard, sizes: dict[str, int]) -> None:
    content = {
        "schema": 1,
        "digest": card.digest,
        "sealed": card.sealed,
        "signature": msgspec.to_builtins(card.signature),
        "tokens": card.tokens,
        "bits_per_value": card.bits_per_value,
        "bytes": sizes,
        "segment_digests": card.manifest.names,
        "manifest": msgspec.to_builtins(card.manifest),
    }
    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    if target == "-":
        sys.stdout.write(text + "\n")
        return
    replace(Path(target), lambda part: part.write_text(text + "\n", encoding="utf-8"))


def mean_bits(card: CacheCard) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Encoded bits per value: of each token, mean over layers, ``[tokens]``; of each layer, mean
    over tokens, ``[layers]``; 0 where forgotten.

    There is never a number for every token and layer: a small file can name too many of both.
    """
    from ..codecs.spent import bytes_of

    layers, runs = card.manifest.layers, card.manifest.runs
    steps, of_layer = np.zeros(card.tokens + 1), np.zeros(len(layers))
    for number, layer in enumerate(layers):
        width = layer.kv_heads * (layer.head_dim + layer.v_head_dim)
        for run in runs:
            bits, held = 8 * bytes_of(card, number, run) / width, run.held(number)
            steps[run.end - held] += bits / held
            steps[run.end] -= bits / held
            of_layer[number] += bits
    return steps.cumsum()[:-1] / len(layers), of_layer / card.tokens


def _plot(card: CacheCard, target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    of_token, of_layer = mean_bits(card)
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(9, 6), layout="constrained")
    top.step(range(card.tokens), of_token, where="mid")
    top.set(xlabel="token", ylabel="bits per value", ylim=(0, None), title="mean over layers")
    bottom.bar(range(len(of_layer)), of_layer)
    bottom.set(xlabel="layer", ylabel="bits per value", ylim=(0, None), title="mean over tokens")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=target.suffix[1:])
    pyplot.close(figure)
    replace(target, lambda part: part.write_bytes(drawn.getvalue()))
    say(f"plot: {target}")
