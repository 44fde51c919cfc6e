"""The texts that calibration makes: of the model, and in many languages."""

from __future__ import annotations

import re
from importlib.resources import files

import torch

from qkvshare.hf.calibrate.own_text import own_text
from qkvshare.hf.calibrate.texts import languages

from ..conftest import tiny_model, tiny_tokenizer

TEXT = (files("qkvshare.hf.calibrate") / "languages.txt").read_text(encoding="utf-8")


def test_own_text_is_that_of_its_seed() -> None:
    model = tiny_model()
    before = torch.random.get_rng_state()
    runs = own_text(model, 3, 100)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [len(run) for run in runs] == [100] * 3
    assert own_text(model, 3, 100) == runs != own_text(model, 3, 100, seed=1)
    assert len({tuple(run) for run in runs}) == 3


def test_every_second_run_of_own_text_is_hotter() -> None:
    """The model finds it less probable."""
    model = tiny_model()
    runs = torch.tensor(own_text(model, 12, 120))
    with torch.no_grad():
        found = torch.log_softmax(model(input_ids=runs).logits[:, :-1], -1)
    chances = found.gather(2, runs[:, 1:, None]).mean((1, 2))
    assert chances[1::2].max() < chances[::2].min()


def test_own_text_longer_than_a_piece() -> None:
    (run,) = own_text(tiny_model(), 1, 601)
    assert len(run) == 601


def test_languages_are_spread_over_all_passages() -> None:
    tokenizer = tiny_tokenizer()
    (whole,) = languages(tokenizer, 1, len(TEXT))
    for contexts, tokens in ((4, 100), (20, 700)):
        runs = languages(tokenizer, contexts, tokens)
        assert [len(run) for run in runs] == [tokens] * contexts
        starts = [n * len(whole) // contexts for n in range(contexts)]
        assert runs == [(whole + whole)[at : at + tokens] for at in starts]
    assert languages(tokenizer, 0, 100) == []


def test_languages_shorter_than_what_is_asked_for_begin_again() -> None:
    tokenizer = tiny_tokenizer()
    (once,) = languages(tokenizer, 1, len(TEXT))
    (run,) = languages(tokenizer, 1, 2 * len(TEXT) + 5)
    assert run == once + once + once[:5]


def test_languages_have_no_french() -> None:
    """It is what rate.md measures as a language that calibration has not seen."""
    words = re.findall(r"[\w']+", TEXT.lower())
    assert len(words) > 1000
    assert not {"avec", "cette", "dans", "est", "nous", "pour", "une", "vous"} & set(words)
