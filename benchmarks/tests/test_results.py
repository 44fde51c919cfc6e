"""What measures the pages in docs/results runs, where a short run can show it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results.paper import pair_table, pairs
from qkvshare.kernels.cuda import has_triton

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
def test_the_script_for_gpus_runs_on_a_processor(tmp_path: Path) -> None:
    target = tmp_path / "tiny.json"
    command = [sys.executable, "-m", "benchmarks.results.gpu", "--tiny", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(target.read_text())["rows"]
    found = {row["section"] for row in rows}
    assert found - {"left out"} == {"device", "parity", "ceilings", "bandwidth", "ttft"}
    parity = [row for row in rows if row["section"] == "parity"]
    # The interpreter cuts bfloat16 off where a GPU rounds.
    assert all(row["numbers_equal"] == 1 for row in parity if row["dtype"] != "bfloat16")
    paths = {row["path"] for row in rows if row["section"] == "ttft"}
    assert paths >= {
        "re-prefill", "resident", "full-precision-file", "card-gpu", "card-pinned", "card",
        "card-file",
    }  # fmt: skip
    # The same card, put elsewhere: one size.
    assert len({row["bytes"] for row in rows if row.get("codec") == "packed"}) == 1


def test_the_floors_in_the_page_are_those_of_the_script() -> None:
    command = [sys.executable, "-m", "benchmarks.results.gpu", "--floors"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() in (RESULTS / "gpu.md").read_text()


def test_attention_is_compared_for_every_length() -> None:
    command = [sys.executable, "-m", "benchmarks.results.attention", "--rounds", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(" | ") for line in printed.splitlines()[2:]]
    page = (RESULTS / "ttft.md").read_text()
    assert len(rows) == 9
    for new, tokens, *_ in rows:
        assert f"\n{new} | {tokens} | " in page


@pytest.mark.slow
def test_rounded_states_are_measured_on_models_trained_here(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The ink is made from walnut shells. It dries in an hour. " * 40)
    command = [sys.executable, "-m", "benchmarks.results.states", "--steps", "2"]
    command += ["--text", str(text), "--held-out", str(text), "--contexts", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| st")]
    assert len(rows) == 2 * 6
    by_way = {way.strip(): int(state.replace(",", "")) for way, _, state, *_ in rows}
    assert by_way["states 4, packed 4"] < by_way["states 8, packed 4"]


def test_bits_at_equal_kl(tmp_path: Path) -> None:
    """Of a text that takes a quarter more; a row no better than one before is left out."""
    names = []
    for name, times in (("one", 1.25), ("other", 1.0)):
        rows = []
        for bits in (0.5, 1.0, 1.1, 2.0):
            kl = 0.1 * math.exp(-2 * bits / times) if bits != 1.1 else 0.1
            mean = {"mean": kl, "ci95": [kl * 0.9, kl * 1.1]}
            figures = dict.fromkeys(("kl", "top1", "delta_nll"), mean)
            setting = {"codec": "transform", "allocator": "", "scorer": "", "budget": bits}
            rows.append({**setting, "bits_per_value": bits, **figures})
        names.append(tmp_path / f"{name}.json")
        names[-1].write_text(json.dumps({"rows": rows}))
    command = [
        sys.executable,
        "-m",
        "benchmarks.results.rate",
        "--against",
        str(names[1]),
        str(names[0]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [line.split("|")[1:5] for line in done.stdout.splitlines()[2:]]
    assert [float(cells[2]) for cells in found] == [0.5, 1.0]
    for cells in found:
        ratio, low, high = map(float, re.findall(r"[0-9.]+", cells[3]))
        assert ratio == 1.25
        assert 1.0 < low < 1.25 < high < 1.5


def test_allocations_are_paired_over_the_same_problems(capsys: pytest.CaptureFixture[str]) -> None:
    def row(allocator: str | None, hops: int, correct: list[int]) -> dict[str, object]:
        return {
            **{"model": "m", "codec": "packed", "policy": "append", "budget": 2.2, "n": 4},
            **{"allocator": allocator, "hops": hops, "bits_per_value": 2.3, "correct": correct},
        }

    rows = [
        row(None, 5, [1, 1, 1, 1]),
        row("uniform", 5, [0, 0, 0, 1]),
        row("lagrangian", 5, [1, 1, 0, 1]),
        row("uniform", 1, [1, 1, 1, 1]),
    ]
    assert pairs(rows) == [(rows[2], rows[1])]
    pair_table(rows)
    assert "| m | 5 | 2.2 | 2.30 | 2.30 | +50.0 [" in capsys.readouterr().out
