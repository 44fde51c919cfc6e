"""``python -m benchmarks compose``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qkvshare.card.digest import digest_bytes
from qkvshare.cli.options import MOST, Json, Model, ProfileFile, progress
from qkvshare.cli.tables import print_table

from .options import Resume, Text, bar, make_settings, open_journal


def compose(
    text: Text,
    model: Model = "smollm2-135m",
    items: Annotated[int, typer.Option(min=2, max=MOST, help="Sets of three documents.")] = 16,
    document_tokens: Annotated[int, typer.Option(min=64, max=MOST)] = 300,
    arm: Annotated[
        list[str] | None, typer.Option(help="By its name in the table; all by default; repeat.")
    ] = None,
    codec: Annotated[str, typer.Option(help="Of the documents' cards.")] = "raw",
    bits: Annotated[float | None, typer.Option(min=0.01, max=MOST)] = None,
    profile: ProfileFile = None,
    json: Json = None,
    resume: Resume = False,
) -> None:
    """Documents behind another prompt: what composing keeps, against reading them."""
    from qkvshare.card.errors import QKVShareError
    from qkvshare.hf.calibrate.texts import read_text
    from qkvshare.hf.model.identity import identify
    from qkvshare.hf.model.load import load_model

    from ..evals.compose import Outcome, measure_compose, tabulate
    from ..evals.compose_arms import arms
    from ..evals.compose_items import make_item
    from ..evals.results import write_rows

    known = arms([], None, None)
    for name in arm or []:
        if name not in known:
            raise QKVShareError(f"no arm {name!r}; expected one of {', '.join(known)}.")
    (setting,) = make_settings([codec], None, None, None if bits is None else [bits], profile)
    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        filler = tokenizer(content)["input_ids"]
    made = [make_item(tokenizer, filler, number, document_tokens) for number in range(items)]
    journal = open_journal(
        json,
        resume,
        verb="compose",
        weights=identify(loaded).weights,
        text=digest_bytes(content.encode()),
        sizes=[items, document_tokens],
        setting=repr(setting),
        arms=arm,
    )
    outcomes = list[dict[str, Outcome]]()
    with bar() as shown:
        found = measure_compose(loaded, made, setting.codec, setting.bits, arm, journal)
        outcomes += shown.track(found, total=items, description="items")
    rows: list[dict[str, Any]] = tabulate(model, outcomes)
    if json != "-":
        titles = ["arm", "computed", "KL (nats)", "KL of text", "answer NLL", "single", "double"]
        cells = [
            [
                row["arm"],
                f"{row['computed']:.3f}",
                *(f"{row[name]['mean']:.4f}" for name in ("kl", "kl_text", "nll")),
                *(f"{row['right'][kind]}/{row['kept'][kind]}" for kind in row["kept"]),
            ]
            for row in rows
        ]
        print_table([*titles, "flip"], cells, keys=1)
    if json is not None:
        write_rows(json, rows)
    journal.close()
