"""``python -m benchmarks codecs``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qkvshare.cli.options import MOST, Json, Model, ProfileFile, progress
from qkvshare.cli.tables import print_table
from qkvshare.registry import label

from .options import CodecNames, Text, bar


def codecs(
    text: Text,
    model: Model = "smollm2-135m",
    context_tokens: Annotated[
        list[int] | None, typer.Option(min=1, max=MOST, help="Repeat for several.")
    ] = None,
    codec: CodecNames = None,
    profile: ProfileFile = None,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="Times that each is measured.")] = 7,
    json: Json = None,
) -> None:
    """Numbers per second that codecs encode (bits spent, digests taken) and decode, in memory."""
    from qkvshare.codecs import make_codec
    from qkvshare.hf.calibrate.texts import read_text, windows
    from qkvshare.hf.model.load import load_model
    from qkvshare.profile import Profile

    from ..evals.results import spread, write_rows
    from ..timing.codecs import measure_codecs

    learned = None if profile is None else Profile.load(profile)
    asked = [make_codec(name, learned) for name in codec or ["packed"]]
    lengths = context_tokens or [1024]
    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        ids = windows(tokenizer(content)["input_ids"], 1, max(lengths))[0]
    rows: list[dict[str, Any]] = []
    with bar() as shown:
        timings = measure_codecs(loaded, ids, lengths, asked, rounds)
        for at in shown.track(timings, total=len(lengths) * len(asked), description="rounds"):
            encode, decode = spread(at.encode), spread(at.decode)
            rows.append(
                {
                    "model": model,
                    "codec": label(at.codec),
                    "context_tokens": at.context_tokens,
                    "bits_per_value": at.bits_per_value,
                    "encode_ms": encode,
                    "decode_ms": decode,
                    "encode_values_per_second": 1000 * at.values / encode["median"],
                    "decode_values_per_second": 1000 * at.values / decode["median"],
                }
            )
    if json != "-":
        cells = [
            [
                row["codec"],
                str(row["context_tokens"]),
                f"{row['bits_per_value']:.3f}",
                f"{row['encode_values_per_second'] / 1e6:.1f}",
                f"{row['decode_values_per_second'] / 1e6:.1f}",
                str(row["decode_ms"]["n"]),
            ]
            for row in rows
        ]
        titles = ["codec", "tokens", "bits/value", "encode M/s", "decode M/s", "n"]
        print_table(titles, cells, keys=2)
    if json is not None:
        write_rows(json, rows)
