"""``python -m benchmarks capture``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkvshare.cli.options import MOST, Json, Model, finite, progress
from qkvshare.cli.tables import print_table

from .options import Text, bar

if TYPE_CHECKING:
    from ..timing.capture import CaptureTiming


def capture(
    text: Text,
    model: Model = "smollm2-135m",
    context_tokens: Annotated[
        list[int] | None, typer.Option(min=1, max=MOST, help="Tokens read; repeat for several.")
    ] = None,
    bits: Annotated[
        float, typer.Option(min=0.01, max=MOST, callback=finite, help="Bits per value.")
    ] = 3.2,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="Times that each is measured.")] = 7,
    json: Json = None,
) -> None:
    """Time of score, allocate, encode and write, as a share of the prefill."""
    from qkvshare.hf.calibrate.texts import read_text, windows
    from qkvshare.hf.model.load import load_model

    from ..evals.results import write_rows
    from ..timing.capture import measure_capture

    lengths = context_tokens or [1024]
    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        (ids,) = windows(tokenizer(content)["input_ids"], 1, max(lengths))
    with bar() as shown:
        timings = measure_capture(loaded, ids, lengths, bits, rounds)
        tracked = shown.track(timings, total=len(lengths), description="lengths")
        rows = [_row(model, bits, timing) for timing in tracked]
    if json != "-":
        cells = []
        for row in rows:
            times = [f"{row[name]['median']:,.0f}" for name in ("prefill_ms", "capture_ms")]
            more = "{median:.1%} [{p25:.1%}, {p75:.1%}]".format(**row["overhead"])
            cells.append([str(row["context_tokens"]), *times, more, str(row["capture_ms"]["n"])])
        titles = ["tokens", "prefill (ms)", "capture and write (ms)", "more", "n"]
        print_table(titles, cells)
    if json is not None:
        write_rows(json, rows)


def _row(model: str, bits: float, timing: CaptureTiming) -> dict[str, Any]:
    from ..evals.results import spread

    # Of each round by itself: a machine that slows down slows both.
    more = spread(
        [whole / read - 1 for read, whole in zip(timing.prefill, timing.capture, strict=True)]
    )
    return {
        "model": model,
        "codec": "packed",
        "budget": bits,
        "context_tokens": timing.context_tokens,
        "prefill_ms": spread(timing.prefill),
        "capture_ms": spread(timing.capture),
        "overhead": more,
    }
