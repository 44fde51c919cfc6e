"""Options that several benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from qkvshare.card.errors import QKVShareError
from qkvshare.cli.options import MOST, finite, progress
from qkvshare.cli.tables import print_table
from qkvshare.registry import label

if TYPE_CHECKING:
    from ..evals.chain import Mode
    from ..evals.handoff import Setting
    from ..evals.journal import Journal

Text = Annotated[Path, typer.Option(help="Plain text, or JSONL with text, or question and answer.")]
ContextTokens = Annotated[int, typer.Option(min=1, max=MOST, help="Tokens handed over.")]
CodecNames = Annotated[list[str] | None, typer.Option("--codec", help="Repeat for several.")]
ScorerNames = Annotated[
    list[str] | None, typer.Option("--scorer", help="Repeat for several (packed and transform).")
]
AllocatorNames = Annotated[
    list[str] | None, typer.Option("--allocator", help="Repeat for several (packed).")
]
Problems = Annotated[
    Path, typer.Option("--data", help="JSONL with question and answer, as GSM8K has them.")
]
Hops = Annotated[list[int] | None, typer.Option(min=1, max=100, help="Hand-offs; repeat.")]
Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help="append (the default), or requantize: all anew at each hop."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with what a killed run has left beside --json.")
]
Budgets = Annotated[
    list[float] | None,
    typer.Option(
        "--bits",
        min=0.01,
        max=MOST,
        callback=finite,
        help="Bits per value of the file, the first one where agents append; repeat for several.",
    ),
]


_LABELS = {
    "kl": "KL (nats)",
    "top1": "top-1",
    "delta_nll": "ΔNLL (nats)",
    "exact": "exact",
    "answer_nll": "answer NLL (nats)",
    "accuracy": "accuracy",
    "delta_points": "points against no hand-off",
}


def make_settings(
    codecs: list[str] | None,
    scorers: list[str] | None,
    allocators: list[str] | None,
    budgets: list[float] | None,
    profile: Path | None = None,
) -> list[Setting]:
    """Every codec at every budget; under every allocator and scorer where it takes them.

    ``packed`` at its default budget where none is named.
    """
    from qkvshare.allocation import Lagrangian, make_allocator
    from qkvshare.codecs import Stepped, Tiered, make_codec
    from qkvshare.hf.capture.strategy import with_strategy
    from qkvshare.profile import Profile
    from qkvshare.scoring import AttentionScorer, Scorer, make_scorer

    from ..evals.handoff import Setting

    learned = None if profile is None else Profile.load(profile)
    limits: list[float | None] = [*budgets] if budgets else [None]
    spenders = [make_allocator(name, learned) for name in allocators or [Lagrangian.name]]
    judges = [make_scorer(name) for name in scorers or [AttentionScorer.name]]
    settings = []
    for name in codecs or ["packed"]:
        codec = make_codec(name, learned)
        for spender in spenders if isinstance(codec, Tiered) else [None]:
            looks = isinstance(codec, Stepped) if spender is None else spender.uses_salience
            asked: list[Scorer | None] = [*judges] if looks else [None]
            for judge in asked:
                made = with_strategy(codec, judge, spender)
                settings += [Setting(made, at) for at in limits]
    return settings


def make_modes(
    settings: Sequence[Setting], policies: list[str] | None, known: Sequence[str]
) -> list[Mode]:
    """Every setting under every policy. Raises `QKVShareError` for one that is not ``known``."""
    from ..evals.chain import Mode

    for policy in policies or []:
        if policy not in known:
            raise QKVShareError(f"no policy {policy!r}; expected one of {', '.join(known)}.")
    return [Mode(setting, policy) for policy in policies or known[:1] for setting in settings]


def open_journal(json: str | None, resume: bool, **measured: Any) -> Journal:
    """Beside ``json``, so that a killed run can go on. Raises `JournalError`."""
    from ..evals.journal import Journal

    if resume and json in (None, "-"):
        raise QKVShareError("--resume needs --json PATH: results are kept beside it as they come.")
    path = None if json in (None, "-") else Path(f"{json}.partial")
    return Journal(path, measured, resume)


def name_setting(model: str, setting: Setting | None) -> dict[str, Any]:
    """The first keys of a row."""
    from qkvshare.codecs import Stepped
    from qkvshare.hf.capture.strategy import allocator_of

    if setting is None:
        nothing = dict.fromkeys(("allocator", "scorer", "budget"))
        return {"model": model, "codec": "none", **nothing}
    codec, scorer = setting.codec, setting.asked
    allocator = allocator_of(codec)
    # A codec that is not told how to spend treats all rows alike.
    alike = codec.allocation if isinstance(codec, Stepped) else "uniform"
    return {
        "model": model,
        "codec": label(codec),
        "allocator": alike if allocator is None else label(allocator),
        "scorer": None if scorer is None else label(scorer),
        "budget": setting.bits,
    }


def make_row(
    model: str, setting: Setting | None, results: Sequence[Any], n: int, **extra: Any
) -> dict[str, Any]:
    """One row: what was measured, then mean and interval of every figure but the size."""
    from ..evals.results import interval

    row: dict[str, Any] = {
        **name_setting(model, setting),
        "bits_per_value": interval([result.bits_per_value for result in results])["mean"],
        **extra,
        "n": n,
    }
    figures = [name for name in vars(results[0]) if name != "bits_per_value"]
    return row | {name: interval([getattr(at, name) for at in results]) for name in figures}


def report(
    rows: list[dict[str, Any]], columns: Mapping[str, Callable[[float], str]], json: str | None
) -> None:
    """Print a table of the figures in ``columns``, write JSON where asked."""
    from ..evals.results import write_rows

    if json != "-":
        names = [_LABELS[name] for name in columns]
        also = [name for name in ("policy", "hops") if name in rows[0]]
        cells = []
        for row in rows:
            budget = "—" if row["budget"] is None else f"{row['budget']:g}"
            keys = [row["codec"], _spent_by(row), budget]
            keys += ["—" if row[name] is None else str(row[name]) for name in also]
            figures = [_cell(row[name], text) for name, text in columns.items()]
            cells.append([*keys, f"{row['bits_per_value']:.3f}", *figures, str(row["n"])])
        titles = ["codec", "spent by", "budget", *also, "bits/value", *names, "n"]
        print_table(titles, cells, keys=3 + len(also))
    if json is not None:
        write_rows(json, rows)


def _spent_by(row: dict[str, Any]) -> str:
    return " × ".join(row[key] for key in ("scorer", "allocator") if row[key]) or "—"


def _cell(value: dict[str, Any], text: Callable[[float], str]) -> str:
    low, high = value["ci95"]
    return f"{text(value['mean'])} [{text(low)}, {text(high)}]"


def bar() -> Progress:
    """A progress bar; it shows only on a terminal, and only while something runs."""
    return Progress(console=progress, transient=True, disable=not progress.is_terminal)
