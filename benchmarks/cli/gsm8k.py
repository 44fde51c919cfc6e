"""``python -m benchmarks gsm8k``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from qkvshare.cli.options import MOST, Json, Model, ProfileFile, finite, progress

from .options import (
    AllocatorNames,
    Budgets,
    CodecNames,
    Problems,
    Resume,
    ScorerNames,
    make_modes,
    make_settings,
    open_journal,
    report,
)
from .relay import names, tabulate, track


def gsm8k(
    data: Problems,
    model: Model = "smollm2-135m",
    problems: Annotated[int, typer.Option(min=1, max=MOST, help="From the first on.")] = 150,
    hops: Annotated[
        list[int] | None, typer.Option(min=0, max=100, help="Hand-offs; 0 is one agent; repeat.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="append (the default), requantize, words (agents get only text), or wrong (they "
            "get another problem's card); repeat."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Problems that are solved at a time.")
    ] = 16,
    codec: CodecNames = None,
    scorer: ScorerNames = None,
    allocator: AllocatorNames = None,
    budget: Budgets = None,
    profile: ProfileFile = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST, help="That an agent may say.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=MOST, callback=finite, help="0 is greedy.")
    ] = 0.0,
    seeds: Annotated[
        int, typer.Option(min=1, max=MOST, help="Runs of each problem, when sampling.")
    ] = 1,
    json: Json = None,
    resume: Resume = False,
) -> None:
    """Agents plan, solve, check and answer in turn; exact match of the last number."""
    from qkvshare.card.digest import digest_json
    from qkvshare.hf.calibrate.texts import TextError
    from qkvshare.hf.model.identity import identify
    from qkvshare.hf.model.load import load_model

    from ..evals.gsm8k import POLICIES, Decoding, measure_gsm8k
    from ..evals.problems import read_problems

    modes = make_modes(make_settings(codec, scorer, allocator, budget, profile), policy, POLICIES)
    counts = sorted(set(hops or [3]))
    chosen = read_problems(data)[:problems]
    if len(chosen) < problems:
        raise TextError(f"{data} has {len(chosen)} problems, fewer than {problems}. Ask for fewer.")
    if 0 < temperature < 0.01:
        raise TextError(f"temperature {temperature} divides by nothing; give 0, or 0.01 and more.")
    if seeds > 1 and temperature == 0:
        raise TextError("without sampling all seeds give the same. Give a --temperature above 0.")
    if "wrong" in (policy or []) and 1 in (batch, problems % batch):
        raise TextError("a batch of one has no wrong card. Give another number to --batch.")
    sampling = Decoding(max_new_tokens, temperature)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
    journal = open_journal(
        json,
        resume,
        verb="gsm8k",
        weights=identify(loaded).weights,
        problems=digest_json(chosen),
        hops=counts,
        modes=names(modes),
        sampling=asdict(sampling),
        seeds=seeds,
        batch=batch,
    )
    measured = measure_gsm8k(
        loaded, tokenizer, chosen, counts, modes, journal, sampling, seeds, batch
    )
    rows = tabulate(model, counts, modes, track(measured, problems * len(counts) * seeds))
    report(rows, {"accuracy": "{:.3f}".format, "delta_points": "{:+.2f}".format}, json)
    journal.close()
