"""Tables at 80 columns, which most terminals and all pipes have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from qkvshare.cli import demo, options
from qkvshare.cli.app import app
from qkvshare.cli.tables import print_table

from ..cards import make_card

VERBS = [verb for verb in app.registered_commands if verb.callback is not None]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Lines of what was printed, none wider than the terminal."""

    def lines(columns: int = 80) -> list[str]:
        printed = capsys.readouterr().out.splitlines()
        assert max(map(cell_len, printed)) <= columns
        return printed

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(options.out, "_width", None)  # not what the variable said at import
    return lines


def test_demo(narrow: Any, tmp_path: Path) -> None:
    """The tables of the demo, with the longest cells that they can have."""
    paths = {name: make_card().save(tmp_path / name) for name in ("full precision", "card")}
    demo._print_cards(paths)
    sentence = "The Marlow Tide Printer was designed by an engineer of Llanfairpwllgwyngyll"
    answer = demo.TimedAnswer(sentence, 12_345.6)
    paths_of_b = ("re-prefill", "full-precision file", "card")
    demo._print_answers([dict.fromkeys(paths_of_b, answer)] * len(demo.QUESTIONS))
    text = "\n".join(narrow())
    assert text.count("12,346 ms") == 9
    assert "…" not in text


def test_list_of_cards(narrow: Any, run: Any, tmp_path: Path) -> None:
    card = make_card(salt=None).fork("the agent with the longest name of all of them, here")
    assert (
        run("store", "put", card.save(tmp_path / "a.card"), "--store", tmp_path / "store")[0] == 0
    )
    _, text, _ = run("store", "ls", "--store", tmp_path / "store")
    assert max(map(cell_len, text.splitlines())) <= 80
    assert card.digest[:12] in text
    assert "longest name of all" in text
    assert "…" not in text


@pytest.mark.parametrize(
    "verb", ["", "key", "store", "store put", *(verb.callback.__name__ for verb in VERBS)]
)
def test_help(narrow: Any, run: Any, verb: str) -> None:
    code, text, _ = run(*verb.split(), "--help")
    assert code == 0
    assert max(map(cell_len, text.splitlines())) <= 80
    assert not re.search(r"\w…", text)


def test_inspect(narrow: Any, run: Any, tmp_path: Path) -> None:
    """A digest stays on one line."""
    card = make_card(salt="5a" * 32)
    _, out, _ = run("inspect", card.save(tmp_path / "a.card"))
    assert max(map(cell_len, out.splitlines())) <= 80
    assert f" {card.digest}" in out
    assert f"chat template  {card.manifest.identity.chat_template}" in out


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
