"""``qkvshare inspect``: what a card says of itself, from its header only."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
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
    from ..codecs.stats import describe

    known = CacheCard.load(card, key=key_of(key))
    described = describe(known)
    if json != "-":
        _print(described)
    if json is not None:
        _write_json(json, known, described)
    if plot is not None:
        _plot(known, plot)


def _rows(known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "card", known["digest"]
    yield "created", _time(known["created"])
    yield "sealed", "yes" if known["sealed"] else "no"
    signature = known["signature"]
    yield "signature", "none" if signature is None else f"{signature['key']} (not checked)"
    if known["salt"] is not None:
        yield "salt", known["salt"]
    if known["expires"] is not None:
        yield "expires", _time(known["expires"])
    yield "tokens", f"{known['tokens']:,}"
    rate = known["bits_per_value"]
    each = "" if rate is None else f", {rate:.3f} bits per value"
    yield "size", f"{known['nbytes']:,} bytes{each}"
    yield "", ", ".join(f"{k} {v:,}" for k, v in known["bytes"].items() if v and k != "total")
    kinds = Counter(f"{at['kind']} {at['kv_heads']}×{at['head_dim']}" for at in known["layers"])
    yield "layers", ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    if states := Counter(
        f"{at['kind']} {'×'.join(map(str, at['shape']))}" for at in known["states"]
    ):
        yield "states", ", ".join(f"{count} {kind}" for kind, count in states.items())
    for name, value in known["identity"].items():
        yield name.replace("_", " "), "none" if value is None else str(value)
    for run in known["segments"]:
        codec = run["codec"]
        made = f"{codec['name']} {codec['parameters'] or ''}"
        if "profile" in codec:
            made += f", profile {codec['profile']}"
        if run["state_bits"] is not None:
            made += f", states in {run['state_bits']} bits"
        if not run["here"]:
            made += ", not in this file"
        yield f"segment {run['segment']}", f"tokens [{run['start']}, {run['end']}), {made}"
    for hop in known["lineage"]:
        parent = hop["parent"]
        origin = "read from scratch" if parent is None else f"from {parent[:12]}…"
        agent, tokens = hop["agent"] or "—", hop["tokens_added"]
        yield f"hop {hop['hop']}", f"{agent}: {tokens} tokens, {origin}"


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"


def _print(known: dict[str, Any]) -> None:
    rows = list(_rows(known))
    width = max(len(name) for name, _ in rows)
    # A table takes time with the square of its rows, and a long chain has thousands.
    for start in range(0, len(rows), _ROWS):
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(width=width)
        table.add_column(overflow="fold")
        for name, value in rows[start : start + _ROWS]:
            table.add_row(name, Text(plain(value)))  # a Text has no markup
        out.print(table)


def _write_json(target: str, card: CacheCard, known: dict[str, Any]) -> None:
    content = {
        "schema": 1,
        **known,
        "segment_digests": card.manifest.names,
        "manifest": msgspec.to_builtins(card.manifest),
    }
    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    if target == "-":
        sys.stdout.write(text + "\n")
        return
    replace(Path(target), lambda part: part.write_text(text + "\n", encoding="utf-8"))


def _plot(card: CacheCard, target: Path) -> None:
    if not card.manifest.layers:
        raise OutputError(f"{target}: the card has states alone, and no bits per value to draw.")
    import matplotlib as mpl

    from ..codecs.stats import mean_bits

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
