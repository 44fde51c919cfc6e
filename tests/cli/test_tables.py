"""Tables at 80 columns, which most terminals and all pipes have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from qkvshare.cli import bench_ttft, evaluate
from qkvshare.cli.tables import print_table

from ..cards import make_card


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Lines of what was printed, none wider than the terminal."""

    def lines(columns: int = 80) -> list[str]:
        printed = capsys.readouterr().out.splitlines()
        assert max(map(cell_len, printed)) <= columns
        return printed

    monkeypatch.setenv("COLUMNS", "80")
    return lines


def times(median: float) -> dict[str, Any]:
    return {"median": median, "p25": median * 0.9, "p75": median * 1.1, "n": 7}


def test_ttft(narrow: Any) -> None:
    row = {
        "context_tokens": 8192,
        "path": "full-precision-file",
        "codec": "packed",
        "ttft_ms": times(12345.6),
        "stages_ms": {name: times(123.4) for name in ("open", "inject", "forward", "sample")},
        "bytes": 123_456_789,
        "cache_bytes": 377_487_360,
        "decode_ms_per_token": times(45.6),
        "peak_extra_bytes": 50_000_000,
    }
    bench_ttft._print([row, row | {"path": "card-file", "cache_bytes": None}])
    printed = narrow()
    # Whose a time is stands beside it, in each of the tables.
    assert sum("full-precision-file │ packed" in line for line in printed) == 4
    text = "\n".join(printed)
    for cell in ("12,346 [11,111, 13,580]", "123.4", "123,456,789", "377,487,360", "50,000,000"):
        assert f" {cell} " in text
    for title in ("first (ms)", "open", "forward", "sample", "in memory"):
        assert f" {title} " in text
    assert "…" not in text
    assert all(line[-1] in "┓┃┩│┘" for line in printed)


def test_inspect(narrow: Any, run: Any, tmp_path: Path) -> None:
    """A digest stays on one line."""
    card = make_card(salt="5a" * 32)
    _, out, _ = run("inspect", card.save(tmp_path / "a.card"))
    assert max(map(cell_len, out.splitlines())) <= 80
    assert f" {card.digest}" in out
    assert f"chat template  {card.manifest.identity.chat_template}" in out


def test_evaluations(narrow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"mean": 0.0123456, "ci95": [0.0101, 0.0145]}
    row = {
        **{"codec": "packed", "scorer": "attention", "allocator": "lagrangian", "budget": 3.2},
        **{"bits_per_value": 3.2, "n": 16, "kl": figure, "top1": figure, "delta_nll": figure},
    }
    columns = {name: "{:.5f}".format for name in ("kl", "top1", "delta_nll")}
    evaluate.report([row], columns, None)
    text = "\n".join(narrow())
    assert text.count(" 0.01235 [0.01010, 0.01450] ") == 3
    assert text.count("attention × lagrangian") > 1
    assert "…" not in text


def test_what_fits_is_one_table(narrow: Any) -> None:
    print_table(["file", "bits per value"], [["a", "3.2"]])
    printed = narrow()
    assert len(printed) == 5
    assert "bits per value" in printed[1]
    print_table(["file", "bits per value"], [])
    assert len(narrow()) == 4


def test_cells_are_no_markup(narrow: Any) -> None:
    print_table(["agent", "n"], [["[/] \x1b[2J", "[red]"]])
    assert any("[/] \\x1b[2J │ [red]" in line for line in narrow())


def test_nothing_is_lost_where_there_is_no_room(narrow: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_table(["key", "value"], [["k" * 30, "v" * 30]])
    text = "".join(narrow(20))
    assert (text.count("k"), text.count("v")) == (31, 31)
