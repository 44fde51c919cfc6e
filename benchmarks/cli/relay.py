"""``python -m benchmarks relay``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkvshare.cli.options import MOST, Json, Model, ProfileFile, progress

from .options import (
    AllocatorNames,
    Budgets,
    CodecNames,
    Hops,
    Policies,
    Problems,
    Resume,
    ScorerNames,
    bar,
    make_modes,
    make_settings,
    name_setting,
    open_journal,
    report,
)

if TYPE_CHECKING:
    from ..evals.chain import Mode


def relay(
    data: Problems,
    model: Model = "smollm2-135m",
    problems: Annotated[
        int, typer.Option(min=1, max=MOST, help="Behind the first 4, the preamble.")
    ] = 150,
    hops: Hops = None,
    policy: Policies = None,
    codec: CodecNames = None,
    scorer: ScorerNames = None,
    allocator: AllocatorNames = None,
    budget: Budgets = None,
    profile: ProfileFile = None,
    json: Json = None,
    resume: Resume = False,
) -> None:
    """Agents in turn add a part of a reference solution, the last one states the result."""
    from qkvshare.card.digest import digest_json
    from qkvshare.hf.calibrate.texts import TextError
    from qkvshare.hf.model.identity import identify
    from qkvshare.hf.model.load import load_model

    from ..evals.chain import POLICIES
    from ..evals.problems import read_problems
    from ..evals.relay import SHOTS, measure_relay

    modes = make_modes(make_settings(codec, scorer, allocator, budget, profile), policy, POLICIES)
    counts = sorted(set(hops or [10]))
    chosen = read_problems(data)[: SHOTS + problems]
    if len(chosen) < SHOTS + problems:
        raise TextError(
            f"{data} has {len(chosen)} problems; {SHOTS} for the preamble and {problems} to be "
            f"asked need {SHOTS + problems}. Ask for fewer."
        )
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
    weights = identify(loaded).weights
    journal = open_journal(
        json,
        resume,
        verb="relay",
        weights=weights,
        problems=digest_json(chosen),
        hops=counts,
        modes=names(modes),
    )
    measured = measure_relay(loaded, tokenizer, chosen, counts, modes, journal)
    rows = tabulate(model, counts, modes, track(measured, problems * len(counts)))
    report(rows, {"accuracy": "{:.3f}".format, "delta_points": "{:+.2f}".format}, json)
    journal.close()


def names(modes: Sequence[Mode]) -> list[Any]:
    """What tells two runs apart."""
    return [[repr(mode.setting), mode.policy] for mode in modes]


def track(measured: Iterator[tuple[int, list[Any]]], total: int) -> list[tuple[int, list[Any]]]:
    """All of it, with progress and the time that is left."""
    with bar() as shown:
        return list(shown.track(measured, total=total, description="problems × hops"))


def tabulate(
    model: str,
    counts: Sequence[int],
    modes: Sequence[Mode],
    measured: Sequence[tuple[int, list[Any]]],
) -> list[dict[str, Any]]:
    """For each number of hops: no hand-off, then each mode, against it."""
    rows = []
    for count in counts:
        columns = list(zip(*(found for at, found in measured if at == count), strict=True))
        reference = [outcome.correct for outcome in columns[0]]
        ways = [None, *modes] if count else [None]
        for mode, column in zip(ways, columns, strict=True):
            rows.append(make_row(model, count, mode, column, reference))
    return rows


def make_row(
    model: str, hops: int, mode: Mode | None, outcomes: Sequence[Any], reference: Sequence[bool]
) -> dict[str, Any]:
    """One condition against what was right without a hand-off."""
    from ..evals.paired import mcnemar, points_lost
    from ..evals.results import interval

    correct = [outcome.correct for outcome in outcomes]
    return {
        **name_setting(model, None if mode is None else mode.carded),
        "policy": None if mode is None else mode.policy,
        "hops": hops,
        "bits_per_value": interval([at.bits_per_value for at in outcomes])["mean"],
        "n": len(outcomes),
        "accuracy": interval([float(at) for at in correct]),
        "delta_points": points_lost(reference, correct),
        "mcnemar_p": mcnemar(reference, correct),
        "correct": [int(at) for at in correct],
        "kl_by_hop": [
            sum(at) / len(at) for at in zip(*(each.kl for each in outcomes), strict=True)
        ],
    }
