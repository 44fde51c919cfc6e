"""All conditions of `docs/benchmarks/paper.md` that solve problems, for one model.

python -m benchmarks.results.paper_runs -m MODEL --data FILE.jsonl --json FILE.json [--resume]

Each condition's row is written as soon as it has run. With ``--resume`` a condition that has a row
in FILE.json does not run again, so the file of one day's conditions goes on with the next day's.
"""

from __future__ import annotations

import json as jsons
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from qkvshare.card.digest import digest_json
from qkvshare.card.errors import QKVShareError
from qkvshare.hf.model.identity import identify
from qkvshare.hf.model.load import load_model

from ..cli.options import Problems, make_modes, make_settings
from ..cli.relay import make_row
from ..evals.chain import Mode
from ..evals.gsm8k import POLICIES, Decoding, solve
from ..evals.problems import read_problems
from ..evals.results import write_rows

GROUPS = ("main", "controls", "baselines", "policy")
_BITS = [2.2, 3.2]


def modes(hops: int, groups: Sequence[str]) -> list[Mode | None]:
    """No hand-off, then what is compared with it, the primary comparison first."""

    def under(policy: str, codec: str, allocators: list[str] | None, bits: Any) -> list[Mode]:
        return make_modes(make_settings([codec], None, allocators, bits), [policy], POLICIES)

    found: list[Mode | None] = [None]
    if hops and "main" in groups:
        for at in _BITS:
            found += under("append", "packed", ["lagrangian", "uniform"], [at])
    if hops == 5:
        if "controls" in groups:
            for policy in ("append", "words", "wrong"):
                found += under(policy, "raw", None, None)
        if "baselines" in groups:
            for codec, at in product(["kivi", "uniform"], [2.6, 4.6]):
                found += under("append", codec, None, [at])
        if "policy" in groups:
            found += under("requantize", "packed", None, _BITS)
    return found


def main(
    data: Problems,
    json: Annotated[Path, typer.Option()],
    model: Annotated[str, typer.Option("-m", "--model")] = "qwen2.5-0.5b",
    problems: Annotated[int, typer.Option(min=2)] = 150,
    hops: Annotated[list[int] | None, typer.Option(min=0, help="In this order.")] = None,
    group: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(GROUPS)}.")] = None,
    resume: bool = False,
) -> None:
    """Run what has no row yet."""
    if unknown := set(group or []) - set(GROUPS):
        raise QKVShareError(f"no group {min(unknown)!r}; expected one of {', '.join(GROUPS)}.")
    if json.exists() and not resume:
        raise QKVShareError(f"{json} is there. Go on with it by --resume, or delete it.")
    chosen, decoding = read_problems(data)[:problems], Decoding()
    loaded, tokenizer = load_model(model)
    of = {"weights": identify(loaded).weights, "problems": digest_json(chosen)}
    rows = jsons.loads(json.read_text())["rows"] if json.exists() else []
    if any({key: row.get(key) for key in of} != of for row in rows):
        raise QKVShareError(f"{json} is of other weights or problems. Give another --json.")
    for count in hops or [5, 1, 3, 0]:
        for mode in modes(count, group or GROUPS):
            name = digest_json([count, repr(mode)])
            if any(row.get("condition") == name for row in rows):
                continue
            outcomes = solve(loaded, tokenizer, chosen, count, mode, decoding)
            if mode is None:
                reference = [at.correct for at in outcomes]
            else:
                alone = next(r for r in rows if r["hops"] == count and r["codec"] == "none")
                reference = [bool(at) for at in alone["correct"]]
            row = make_row(model, count, mode, outcomes, reference)
            rows.append({"condition": name, **of, **row})
            write_rows(str(json), rows)


if __name__ == "__main__":
    typer.run(main)
