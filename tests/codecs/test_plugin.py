"""Codecs of another package, installed by entry points, go wherever ours do: plugin/ has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qkvshare import CacheCard, Raw, capture
from qkvshare.card.errors import CodecError
from qkvshare.cli.main import main
from qkvshare.codecs import Codec, codec_names, find_codec, from_record, make_codec
from qkvshare.hf.session.answers import Keep, Sampling
from qkvshare.hf.session.session import Session
from qkvshare.serve.a2a.extension import Receiver, codecs_of
from qkvshare.serve.viewing import card_view
from qkvshare.store import Store

from ..conftest import some_ids, tiny_model

CONTEXT, NEW = some_ids(150), some_ids(5, seed=1)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).with_name("plugin"))


@pytest.fixture(params=["acme-bytes", "acme-bytes:levels=100", "acme-halves"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return make_codec(request.param)


def test_they_are_found_by_name() -> None:
    assert {"acme-bytes", "acme-halves", "packed"} <= set(codec_names())
    assert find_codec("acme-bytes").version == 3
    with pytest.raises(CodecError, match="no codec 'acme-other'"):
        find_codec("acme-other")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_capture_and_inject(codec: Codec, family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    made = capture(model, None, CONTEXT, codec=codec, bits=14.0, agent="first")
    card = CacheCard.load(made.save(tmp_path / "card"))
    assert card.bits_per_value <= 14
    assert from_record(card.manifest.segments[0].codec) == codec
    card.verify()

    inputs = card.inputs(model, None, NEW)
    if codec.name == "acme-bytes":
        exact = capture(model, None, CONTEXT, codec=Raw()).inputs(model, None, NEW)
        keys, expected = (at["past_key_values"].layers[1].keys for at in (inputs, exact))
        torch.testing.assert_close(keys, expected, rtol=0, atol=0.03 * expected.abs().max().item())
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True)
    # The answer is appended by the same codec.
    longer = card.extend(model, out, agent="second")
    assert longer.manifest.segments[1].codec.name == codec.name
    assert longer.manifest.segments[0] == card.manifest.segments[0]
    model(**longer.compact().inputs(model, None, NEW, new_only=True))


@pytest.mark.parametrize("kv_format", ["bfloat16", "codes"])
def test_caches_of_other_formats(codec: Codec, kv_format: Any) -> None:
    model = tiny_model()
    card = capture(model, None, CONTEXT, codec=codec)
    plain, other = (
        model(**card.inputs(model, None, NEW, new_only=True, kv_format=how)).logits
        for how in ("model", kv_format)
    )
    torch.testing.assert_close(plain, other, rtol=0, atol=1e-4 if kv_format == "codes" else 2.0)


def test_a_store_keeps_their_cards(codec: Codec, tmp_path: Path) -> None:
    model, store = tiny_model(), Store(tmp_path)
    card = capture(model, None, CONTEXT, codec=codec)
    assert store.get(store.put(card)).digest == card.digest


def test_page_and_agents_know_them(codec: Codec, tokenizer: Any) -> None:
    model = tiny_model()
    card = capture(model, tokenizer, "The ink is made from walnut shells. " * 4, codec=codec)
    view = json.loads(json.dumps(card_view(card, tokenizer)))
    assert view["segments"][0]["codec"]["name"] == codec.name
    assert sum(view["bytes"].values()) == 2 * card.nbytes  # with the total
    assert len(view["bits"]["all"]) == card.tokens
    assert set(codecs_of(card.manifest)) <= set(Receiver.of(card.manifest.identity).codecs)


def test_a_session_answers_from_their_cards(codec: Codec, tokenizer: Any, tmp_path: Path) -> None:
    session, store = Session(tiny_model(), tokenizer, codec=codec), Store(tmp_path)
    kept = session.read("The tide is high at noon.", store, Keep(agent="reader"))
    asked = session.prompt(store, [{"role": "user", "content": "When?"}], kept.card)
    answer = session.answer(asked, Sampling(4), store=store, keep=Keep())
    assert answer.cached_tokens >= len("The tide is high at noon.")
    assert {run.codec.name for run in store.get(str(answer.card)).manifest.runs} == {codec.name}


def test_command_line(
    codec: Codec, llama_folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def run(*words: Any) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["qkvshare", *map(str, words)])
        with pytest.raises(SystemExit, match="^0$"):
            main()
        return str(capsys.readouterr().out)

    path = tmp_path / "card"
    text = ["-m", llama_folder, "--prompt", "The ink is made from walnut shells."]
    run("capture", *text, "-o", path, "--codec", codec.name)
    manifest = json.loads(run("inspect", path, "--json", "-"))["manifest"]
    assert manifest["segments"][0]["codec"]["name"] == codec.name
    run("verify", path)
