"""All conditions of `docs/benchmarks/paper.md` that solve problems, for one model.

python -m benchmarks.results.paper_runs -m MODEL --data FILE.jsonl --json FILE.json [--resume]

A killed run goes on by ``--resume``; no condition runs twice. The rows of a number of hops are
written as soon as all of its conditions have run.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from qkvshare.card.digest import digest_json
from qkvshare.hf.model.identity import identify
from qkvshare.hf.model.load import load_model

from ..cli.options import Problems, make_modes, make_settings, open_journal
from ..cli.relay import names, tabulate
from ..evals.chain import Mode
from ..evals.gsm8k import POLICIES, Decoding, measure_gsm8k
from ..evals.problems import read_problems
from ..evals.results import write_rows

_ALLOCATORS = ["lagrangian", "uniform"]


def modes(hops: int, bits: list[float], core: bool) -> list[Mode]:
    """What is compared with no hand-off, the primary comparison first."""

    def under(policy: str, codec: str, budgets: list[float] | None) -> list[Mode]:
        return make_modes(make_settings([codec], None, None, budgets), [policy], POLICIES)

    if hops == 0:
        return []
    budgets = [make_settings(["packed"], None, _ALLOCATORS, [at]) for at in bits]
    main = make_modes([one for at in budgets for one in at], None, POLICIES)
    if core or hops != 5:
        return main
    controls = [under(policy, "raw", None) for policy in ("append", "words", "wrong")]
    others = [under("append", *at) for at in product(["kivi", "uniform"], [[2.6], [4.6]])]
    again = [under("requantize", "packed", bits)]
    return main + [mode for part in controls + others + again for mode in part]


def main(
    data: Problems,
    json: Annotated[Path, typer.Option()],
    model: Annotated[str, typer.Option("-m", "--model")] = "qwen2.5-0.5b",
    problems: Annotated[int, typer.Option(min=1)] = 150,
    hops: Annotated[list[int] | None, typer.Option(min=0, help="In this order.")] = None,
    batch: Annotated[int, typer.Option(min=2)] = 150,
    core: Annotated[bool, typer.Option(help="Default and uniform alone.")] = False,
    resume: bool = False,
) -> None:
    """Run what is missing."""
    counts = hops or [5, 1, 3, 0]
    chosen, decoding = read_problems(data)[:problems], Decoding()
    loaded, tokenizer = load_model(model)
    planned = {count: modes(count, [2.2, 3.2], core) for count in counts}
    measured: dict[str, Any] = {
        "weights": identify(loaded).weights,
        "problems": digest_json(chosen),
        "modes": {str(count): names(some) for count, some in planned.items()},
        "batch": batch,
    }
    journal = open_journal(str(json), resume, **measured)
    rows = []
    for count, some in planned.items():
        found = measure_gsm8k(loaded, tokenizer, chosen, [count], some, journal, decoding, 1, batch)
        rows += tabulate(model, [count], some, list(found))
        write_rows(str(json), rows)
    journal.close()


if __name__ == "__main__":
    typer.run(main)
