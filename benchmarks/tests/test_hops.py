"""Evaluations over several hand-offs: the chain of agents, its journal, its statistics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain as joined
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.codecs import Uniform
from benchmarks.evals.chain import AgentChain, Mode, Preamble
from benchmarks.evals.facts import random_records
from benchmarks.evals.handoff import Setting
from benchmarks.evals.journal import Journal, JournalError
from benchmarks.evals.paired import mcnemar, points_lost
from benchmarks.evals.problems import Problem, first_number, last_number, read_problems
from benchmarks.evals.recall import Haystack, build_haystack
from benchmarks.evals.recall_hops import measure_recall_hops
from benchmarks.evals.relay import measure_relay
from qkvshare import Packed, Raw
from qkvshare.hf.calibrate.texts import TextError
from tests.conftest import some_ids, tiny_model, tiny_tokenizer

NOTHING = Journal(None, {}, False)
RAW = Mode(Setting(Raw()))
PROBLEMS = [
    Problem(f"How much is {n} + {n}?", f"{n} + {n} = {2 * n}", str(2 * n)) for n in range(7)
]


@pytest.fixture(scope="module")
def long_llama() -> Any:
    return tiny_model(max_position_embeddings=2048)


@pytest.mark.parametrize("hops", [1, 3, 8])
def test_relay_of_raw_cards_is_no_hand_off(long_llama: Any, hops: int) -> None:
    modes = [RAW, Mode(RAW.setting, "requantize"), Mode(Setting(Uniform(2)))]
    for count, (none, *found) in measure_relay(
        long_llama, tiny_tokenizer(), PROBLEMS, [hops], modes, NOTHING
    ):
        assert count == hops
        assert none.kl == []
        for outcome in found:
            assert len(outcome.kl) == hops
        assert max(found[0].kl + found[1].kl) < 1e-6
        assert max(found[2].kl) > 1e-3
        assert [at.correct for at in found[:2]] == 2 * [none.correct]


def test_relay_refuses_more_hops_than_tokens(long_llama: Any) -> None:
    with pytest.raises(TextError, match="into 50 parts"):
        list(measure_relay(long_llama, tiny_tokenizer(), PROBLEMS, [50], [RAW], NOTHING))


@pytest.mark.parametrize("codec", [Uniform(2), Packed()], ids=str)
def test_a_line_hands_over_what_a_fresh_receiver_would_get(
    long_llama: Any, codec: Any, tmp_path: Path
) -> None:
    """What earlier agents hold saves decoding and changes nothing."""
    mode = Mode(Setting(codec, 6.0 if codec.name == "packed" else None))
    preamble = Preamble.of(long_llama, some_ids(90), [mode])
    chain = AgentChain.behind(preamble, mode, tmp_path)
    for hop in range(3):
        chain.read(some_ids(20, seed=hop))
        chain.hand_over()
    card = chain.card
    assert card is not None
    assert [segment.end for segment in card.manifest.segments] == [90, 110, 130, 150]
    fresh = card.inputs(long_llama, new=[5])["past_key_values"]
    for one, two in zip(chain.receive([5]).layers, fresh.layers, strict=True):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)


def test_requantize_encodes_everything_again(long_llama: Any, tmp_path: Path) -> None:
    mode = Mode(Setting(Uniform(2)), "requantize")
    chain = AgentChain.behind(Preamble.of(long_llama, some_ids(90), [mode]), mode, tmp_path)
    for hop in range(3):
        chain.read(some_ids(20, seed=hop))
        chain.hand_over()
        assert chain.card is not None
        assert len(chain.card.manifest.segments) == 1


@given(
    count=st.integers(1, 12),
    length=st.integers(20, 90),
    facts=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 9)), max_size=4),
)
def test_runs_are_the_context_and_cut_no_fact(
    count: int, length: int, facts: list[tuple[int, int]]
) -> None:
    ends, places = 0, []
    for start, size in sorted(facts):
        if start >= ends and start + size <= length:
            places.append((start, start + size))
            ends = start + size
    runs = Haystack(list(range(length)), places, []).runs(count)
    assert len(runs) == count
    assert list(joined(*runs)) == list(range(length))
    for run in runs[:-1]:
        if run:
            assert not any(start <= run[-1] < end - 1 for start, end in places)


def test_recall_over_hops_of_raw_cards_is_no_hand_off(long_llama: Any) -> None:
    tokenizer = tiny_tokenizer()
    filler = tokenizer("Grain of sand. " * 200)["input_ids"]
    # (Not uniform: what it has quantized once it quantizes to the same again.)
    packed = Setting(Packed(), 8)
    modes = [RAW, Mode(packed, "append"), Mode(packed, "requantize")]
    for kind in ("short", "records"):
        rows = list(
            measure_recall_hops(
                long_llama, tokenizer, filler, 1, 1500, [1, 5], modes, NOTHING, kind=kind
            )
        )
        assert [count for count, _ in rows] == [1, 5]
        for hops, (none, raw, append, again) in rows:
            assert raw.answer_nll == pytest.approx(none.answer_nll, abs=1e-4)
            assert append.answer_nll != pytest.approx(none.answer_nll, abs=1e-3)
            assert (append.answer_nll == again.answer_nll) == (hops == 1)


@pytest.mark.parametrize("seed", range(5))
def test_records_are_json_and_stand_in_the_context(seed: int) -> None:
    tokenizer, facts = tiny_tokenizer(), random_records(seed, 2)
    filler = tokenizer("x" * 2000)["input_ids"]
    hay = build_haystack(tokenizer, filler, 2000, facts)
    for fact, (start, end) in zip(facts, hay.places, strict=True):
        assert len(json.loads(fact.answer)) == 10
        assert fact.question + fact.answer == fact.statement
        assert tokenizer.decode(hay.ids[start:end]).strip() == fact.statement


def test_numbers() -> None:
    text = "At $1,250.50 each, 3 cost $3,751.50. -7 remain, not 5.0"
    assert first_number(text) == "1250.5"
    assert last_number(text) == "5"
    assert last_number("-7 remain.") == "-7"
    assert first_number("none") is last_number("none") is None


def test_problems(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    record = {"question": " Why? ", "answer": "2 + 2 = <<2+2=4>>4\nSo 1,004.\n#### 1,004"}
    path.write_text(json.dumps(record) + "\n")
    assert read_problems(path) == [Problem("Why?", "2 + 2 = 4\nSo 1,004.", "1004")]
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(record | {"question": "\u2028?"}).encode() + b"\r\n"
    )
    assert read_problems(path)[0].question == "?"
    for bad, match in (
        ('{"question": "?"}', "a record has question; expected texts 'question' and 'answer'"),
        ('{"question": "?", "answer": "4"}', "ends with '#### NUMBER'"),
        ('{"question": 1, "answer": "#### 4"}', "expected texts"),
        ('\n{"question": "\\ud83d", "answer": "#### 4"}', "line 2: "),
        ("[]", "line 1: Expected `object`, got `array`"),
        ("{", "Expected JSONL"),
        ('{"a":' * 100_000, "Expected JSONL"),
    ):
        path.write_text(bad)
        with pytest.raises(TextError, match=match):
            read_problems(path)


def test_paired_statistics() -> None:
    reference = [True] * 8 + [False] * 2
    assert mcnemar(reference, reference) == 1.0
    assert mcnemar(reference, [False] * 10) == pytest.approx(2 / 2**8)
    assert mcnemar([True, False], [False, True]) == 1.0
    assert points_lost(reference, reference) == {"mean": 0.0, "ci95": [0.0, 0.0]}
    lost = points_lost(reference, [False, *reference[1:]])
    assert lost["mean"] == pytest.approx(-10)
    assert lost["ci95"][0] < -10 <= lost["ci95"][1] <= 0


def test_journal(tmp_path: Path) -> None:
    path, measured = tmp_path / "rows.json.partial", {"what": "this", "hops": [1, 2]}
    first = Journal(path, measured, False)
    first.put("a", [1.5, 2.0])
    first.put("b", [2.5])
    with path.open("ab") as file:
        file.write(b'["c", [1')  # killed here
    with pytest.raises(JournalError, match="--resume"):
        Journal(path, measured, False)
    with pytest.raises(JournalError, match="another evaluation"):
        Journal(path, measured | {"hops": [1]}, True)
    second = Journal(path, measured, True)
    assert second.get("a", list[float]) == [1.5, 2.0]
    assert second.get("c", list[float]) is None
    second.put("c", [3.0])
    third = Journal(path, measured, True)
    assert [third.get(key, list[float]) for key in "bc"] == [[2.5], [3.0]]
    third.close()
    assert not path.exists()
    path.write_text("[]\n")
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, measured, True)
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(tmp_path / "no" / "folder", measured, False)


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_table(tmp_path: Path, long_llama: Any) -> None:
    long_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    records = [
        {"question": at.question, "answer": f"{at.solution}\n#### {at.answer}"} for at in PROBLEMS
    ]
    data.write_text("\n".join(json.dumps(record) for record in records))

    def command(target: str, *more: str) -> list[str]:
        options = ["--problems", "3", "--hops", "2", "--hops", "4", "--policy", "append"]
        options += ["--policy", "requantize", "--codec", "uniform:bits=2", "--codec", "raw"]
        whole = ["relay", "--data", str(data), "-m", str(tmp_path / "model"), *options]
        return [sys.executable, "-m", "benchmarks", *whole, "--json", str(tmp_path / target), *more]

    done = subprocess.run(command("whole.json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "cut.json.partial"
    killed = subprocess.Popen(command("cut.json"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (kept.exists() and kept.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = kept.read_bytes().count(b"\n")
    assert before < 7, "too late to kill anything"
    refused = subprocess.run(command("cut.json"), capture_output=True, text=True)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    done = subprocess.run(command("cut.json", "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not kept.exists()
    rows = [
        json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2 * 5
    assert set(rows[0][0]) == {
        *("model", "codec", "allocator", "scorer", "budget", "policy", "hops", "bits_per_value"),
        *("n", "accuracy", "delta_points", "mcnemar_p", "correct", "kl_by_hop"),
    }
