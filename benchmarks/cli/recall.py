"""``python -m benchmarks recall``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qkvshare.card.digest import digest_bytes
from qkvshare.cli.options import MOST, Json, Model, ProfileFile, progress

from .options import (
    AllocatorNames,
    Budgets,
    CodecNames,
    ContextTokens,
    Policies,
    Resume,
    ScorerNames,
    Text,
    bar,
    make_modes,
    make_row,
    make_settings,
    open_journal,
    report,
)
from .relay import names, track


def recall(
    text: Text,
    model: Model = "smollm2-135m",
    questions: Annotated[
        int, typer.Option(min=1, max=MOST, help="Rounded up to whole contexts.")
    ] = 200,
    context_tokens: ContextTokens = 1024,
    facts: Annotated[
        str, typer.Option(help="short: 8 in a context; records: 2, JSON of up to 200 tokens.")
    ] = "short",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Chooses the facts.")] = 0,
    focus: Annotated[
        bool, typer.Option(help="A card for each question, whose sender knows it.")
    ] = False,
    hops: Annotated[
        list[int] | None,
        typer.Option(min=1, max=100, help="So many agents write the context in turn; repeat."),
    ] = None,
    policy: Policies = None,
    codec: CodecNames = None,
    scorer: ScorerNames = None,
    allocator: AllocatorNames = None,
    budget: Budgets = None,
    profile: ProfileFile = None,
    json: Json = None,
    resume: Resume = False,
) -> None:
    """Exact copies and answer NLL of facts hidden in filler text, asked after the hand-off."""
    from qkvshare.hf.calibrate.texts import TextError, read_text
    from qkvshare.hf.model.identity import identify
    from qkvshare.hf.model.load import load_model

    from ..evals.chain import POLICIES
    from ..evals.recall import FACTS, measure_recall
    from ..evals.recall_hops import measure_recall_hops

    if facts not in FACTS:
        raise TextError(f"no facts {facts!r}; expected one of {', '.join(FACTS)}.")
    if not hops and (policy or resume):
        raise TextError("--policy and --resume are for hand-offs after one another: give --hops.")
    if hops and focus:
        raise TextError("with --hops every agent hands over without knowing the question.")
    settings = make_settings(codec, scorer, allocator, budget, profile)
    content, each = read_text(text), FACTS[facts][0]
    contexts = -(-questions // each)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        filler = tokenizer(content)["input_ids"]
    sized: dict[str, Any] = {"context_tokens": context_tokens}
    if hops:
        modes, counts = make_modes(settings, policy, POLICIES), sorted(set(hops))
        journal = open_journal(
            json,
            resume,
            verb="recall",
            weights=identify(loaded).weights,
            text=digest_bytes(content.encode()),
            sizes=[contexts, context_tokens, seed, facts],
            hops=counts,
            modes=names(modes),
        )
        found = measure_recall_hops(
            loaded, tokenizer, filler, contexts, context_tokens, counts, modes, journal, seed, facts
        )
        measured = track(found, contexts * len(counts))
        rows = []
        for count in counts:
            columns = zip(*(results for at, results in measured if at == count), strict=True)
            for mode, column in zip([None, *modes], columns, strict=True):
                handed = {"policy": None if mode is None else mode.policy, "hops": count}
                setting = None if mode is None else mode.setting
                rows.append(make_row(model, setting, column, contexts * each, **sized, **handed))
    else:
        journal = None
        with bar() as shown:
            alone = measure_recall(
                loaded, tokenizer, filler, contexts, context_tokens, settings, seed, focus, facts
            )
            results = list(shown.track(alone, total=contexts, description="contexts"))
        rows = [
            make_row(model, setting, column, contexts * each, **sized)
            for setting, column in zip([None, *settings], zip(*results, strict=True), strict=True)
        ]
    for row in rows:
        if focus and row["scorer"]:
            row["scorer"] += " (focus)"
    report(rows, {"exact": "{:.3f}".format, "answer_nll": "{:.3f}".format}, json)
    if journal is not None:
        journal.close()
