"""GSM8K by agents in the rows of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.evals.agents import AgentBatch
from benchmarks.evals.chain import Mode
from benchmarks.evals.gsm8k import Decoding, _turns, measure_gsm8k, roles
from tests.conftest import greedy_from_text, some_ids, tiny_model, tiny_tokenizer

from .test_hops import NOTHING, PROBLEMS, RAW, long_llama

__all__ = ["long_llama"]


def test_roles() -> None:
    assert [len(roles(hops)) for hops in range(1, 11)] == list(range(2, 12))
    assert roles(1) == ["solve", "answer"]
    assert roles(0) == ["solve"]
    assert roles(4) == ["plan", "solve", "check", "check", "answer"]


@pytest.mark.parametrize("who", [roles(1), roles(4)])
def test_turns_make_the_conversation_that_the_template_makes(who: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = _turns(tokenizer, PROBLEMS[0], who)
    text = "".join(tokenizer.decode(turn) + f"words {n}" for n, turn in enumerate(turns))
    messages = [{"role": "system", "content": text.split("<system>")[1].split("</s>")[0]}]
    for n, said in enumerate(text.split("<user>")[1:]):
        messages.append({"role": "user", "content": said.split("</s>")[0]})
        messages.append({"role": "assistant", "content": f"words {n}"})
    assert text + "</s>" == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_gsm8k_with_raw_cards_says_what_it_says_without(
    long_llama: Any, temperature: float
) -> None:
    modes = [RAW, Mode(RAW.setting, "requantize")]
    tokenizer, how = tiny_tokenizer(), Decoding(12, temperature)
    args = long_llama, tokenizer, PROBLEMS[:3], [1, 3], modes, NOTHING, how, 2 if temperature else 1
    rows = list(measure_gsm8k(*args, batch=2))
    assert len(rows) == 2 * 3 * (2 if temperature else 1)
    for _, (none, *found) in rows:
        assert [at.correct for at in found] == 2 * [none.correct]
        assert all(32 < at.bits_per_value < 64 for at in found)


def talk(model: Any, mode: Mode | None, folder: Path, hops: int = 2) -> AgentBatch:
    """Three agents in each of three conversations."""
    agents = AgentBatch(model, mode, folder, 3)
    for turn in range(hops + 1):
        if turn:
            agents.hand_over()
        texts = [some_ids(5 + 3 * row, seed=10 * turn + row) for row in range(3)]
        agents.write(texts, 6, do_sample=False, pad_token_id=0)
    return agents


@pytest.mark.parametrize("policy", [None, "append", "requantize"])
def test_agents_of_a_batch_say_what_each_says_alone(
    long_llama: Any, tmp_path: Path, policy: str | None
) -> None:
    """Every token is read once, also the last one said, which no cache holds at a hand-off."""
    agents = talk(long_llama, None if policy is None else Mode(RAW.setting, policy), tmp_path)
    for number, row in enumerate(agents.rows):
        ids: list[int] = []
        for turn in range(3):
            ids += some_ids(5 + 3 * number, seed=10 * turn + number)
            ids += greedy_from_text(long_llama, ids)[:6]
        assert [*row.ids, *row.unread] == ids
        assert (row.card is None) == (policy is None)


def test_with_wrong_cards_each_row_goes_on_from_the_next(long_llama: Any, tmp_path: Path) -> None:
    right = talk(long_llama, RAW, tmp_path, hops=0)
    agents = talk(long_llama, Mode(RAW.setting, "wrong"), tmp_path)
    for row, other in zip(agents.rows, [*right.rows[1:], right.rows[0]], strict=True):
        assert row.ids[: len(other.ids)] == other.ids


def test_with_words_agents_get_no_card(long_llama: Any, tmp_path: Path) -> None:
    agents = talk(long_llama, Mode(RAW.setting, "words"), tmp_path)
    for number, row in enumerate(agents.rows):
        assert row.card is None
        assert row.ids[: 5 + 3 * number] == some_ids(5 + 3 * number, seed=20 + number)
    assert agents.bits_per_value == [0, 0, 0]


def test_what_is_said_after_the_end_is_nobodys(tmp_path: Path) -> None:
    model = tiny_model(eos_token_id=2)
    said = AgentBatch(model, None, tmp_path, 3)._said(
        torch.tensor([[5, 2, 0, 0], [5, 6, 7, 2], [5, 6, 7, 8]])
    )
    assert said == [[5, 2], [5, 6, 7, 2], [5, 6, 7, 8]]
