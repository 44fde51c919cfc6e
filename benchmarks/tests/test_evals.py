"""The measuring itself: facts, haystacks, texts, intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.evals.facts import random_facts
from benchmarks.evals.recall import build_haystack
from benchmarks.evals.results import interval
from qkvshare.hf.calibrate.texts import TextError, read_text, windows
from tests.conftest import tiny_tokenizer


def test_facts_are_those_of_their_seed() -> None:
    assert random_facts(3, 8) == random_facts(3, 8)
    assert random_facts(3, 8) != random_facts(4, 8)


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_stands_in_its_statement_and_in_no_other(seed: int) -> None:
    facts = random_facts(seed, 10)
    for fact in facts:
        parts = fact.answer.strip().split(" and ")
        assert all(part in fact.statement for part in parts)
        subject = fact.question.removeprefix("Reminder: ").removeprefix("Record: ")
        assert sum(subject in other.question for other in facts) == 1


@pytest.mark.parametrize("tokens", [600, 801, 1024])
def test_haystack(tokens: int) -> None:
    tokenizer, facts = tiny_tokenizer(), random_facts(0, 8)
    filler = tokenizer("x" * tokens)["input_ids"]
    hay = build_haystack(tokenizer, filler, tokens, facts)
    assert len(hay.ids) == tokens
    text = "".join(tokenizer.convert_ids_to_tokens(hay.ids))
    places = [text.index("\n" + fact.statement + "\n") for fact in facts]
    assert places == sorted(places)
    assert text.startswith("x")
    assert text.endswith("x")
    with pytest.raises(TextError, match="leave"):
        build_haystack(tokenizer, filler[:100], tokens, facts)


def test_texts(tmp_path: Path) -> None:
    plain, records = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("Grüße")
    records.write_text('{"text": "one"}\n\n{"question": "two?", "answer": "2"}\n')
    assert read_text(plain) == "Grüße"
    assert read_text(records) == "one\n\nQuestion: two?\nAnswer: 2"
    for content in ('{"other": 1}', "[1]", "{", "3"):
        records.write_text(content)
        with pytest.raises(TextError, match="expected 'text', or 'question' and 'answer'|line 1"):
            read_text(records)
    plain.write_bytes(b"\xff\xfe")
    for path in (plain, tmp_path / "none"):
        with pytest.raises(TextError, match="cannot be read as UTF-8 text"):
            read_text(path)


def test_windows_do_not_overlap() -> None:
    assert windows(list(range(10)), 3, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(TextError, match="10 tokens; 4 contexts of 3 need 12"):
        windows(list(range(10)), 4, 3)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = interval(rng.normal(5, 2, 40).tolist(), draws=400)["ci95"]
        hits += low <= 5 <= high
    assert 0.88 <= hits / 200 <= 0.99
