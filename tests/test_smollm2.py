"""The real model: SmolLM2-135M-Instruct on real text."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.codecs import Kivi, Uniform
from benchmarks.evals.fidelity import measure_fidelity
from benchmarks.evals.handoff import Setting
from qkvshare import CacheCard, Packed, Raw, Transform, capture, capture_cache
from qkvshare.hf.calibrate.calibrate import calibrate
from qkvshare.hf.calibrate.texts import read_text, windows
from qkvshare.hf.model.load import embedded_folder

from .conftest import greedy, greedy_from_text
from .hf.test_handoff import in_second_process

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k" / "test-first-700.jsonl"

PROMPTS = [
    ("manual", "\n\nQuestion: What is the ink made from?\nAnswer:"),
    ("A tide is the rise and fall of the sea. " * 6, "It is caused by"),
    ("def fibonacci(n):\n    if n < 2:\n        return n\n", "    return fibonacci("),
]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_same_64_tokens_from_a_card(smollm2: Any, number: int, tmp_path: Path) -> None:
    model, tokenizer = smollm2
    text, question = PROMPTS[number]
    if text == "manual":
        text = (files("qkvshare.cli") / "manual.txt").read_text()
    context = tokenizer(text)["input_ids"]
    new = tokenizer(question)["input_ids"]
    expected = greedy_from_text(model, context + new, 64)
    path = capture(model, tokenizer, text, codec=Raw()).save(tmp_path / "card")
    assert greedy(model, 64, **CacheCard.load(path).inputs(model, new=new)) == expected
    assert in_second_process(embedded_folder(), path, new, 64) == expected


_SAID = {
    "chain": "hop 2: writer",
    "fan_out": "merger: ",
    "mcp_pair": "walnut",
    "two_agents": "walnut shells",
    "two_processes": "walnut shells",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_SAID))
def test_examples_run(name: str) -> None:
    script = Path(__file__).parents[1] / "examples" / f"{name}.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _SAID[name] in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("codec", [Packed(), Uniform(4)], ids=lambda at: at.name)
def test_the_tenth_hop_encodes_as_much_as_the_first(
    smollm2: Any, codec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 new tokens each time; what was before is not encoded again."""
    model, tokenizer = smollm2
    ids = tokenizer((files("qkvshare.cli") / "manual.txt").read_text())["input_ids"][:1152]
    encoded: list[int] = []
    encode = type(codec).encode

    def counting(self: Any, layers: Any, *rest: Any, **named: Any) -> Any:
        layers = list(layers)
        encoded.append(sum(at.keys.shape[-2] for at in layers))
        return encode(self, layers, *rest, **named)

    monkeypatch.setattr(type(codec), "encode", counting)
    card = capture(model, None, ids[:512], codec=codec)
    layers = len(card.blob_bytes)
    assert encoded == [512 * layers]
    size = 0
    for hop, end in enumerate(range(576, 1153, 64), 1):
        arguments = card.inputs(model, new=ids[end - 64 : end], new_only=True)
        with torch.no_grad():
            model(**arguments, logits_to_keep=1)
        card = capture_cache(model, arguments["past_key_values"], ids[:end])
        assert len(card.manifest.segments) == hop + 1
        new = sum(blobs[-1] for blobs in card.blob_bytes)
        assert hop == 1 or new < 1.1 * size
        size = new
    assert encoded[1:] == 10 * [64 * layers]


def test_no_network_is_touched(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from qkvshare.hf.model.load import EMBEDDED, load_model

    model, tokenizer = load_model(EMBEDDED)
    card = capture(model, tokenizer, "Nothing leaves this machine.")
    greedy(model, 2, **card.inputs(model, tokenizer))


@pytest.mark.slow
def test_uniform_on_gsm8k(smollm2: Any) -> None:
    """The figures of DESIGN.md section 6: 1024 tokens of context, 64 teacher-forced."""
    if not GSM8K.exists():
        pytest.skip(f"needs GSM8K at {GSM8K}")
    model, tokenizer = smollm2
    records = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    contexts = []
    for start in range(0, 144, 36):
        problems = [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in records[start:]]
        contexts.append(tokenizer("\n\n".join(problems[:24]))["input_ids"][: 1024 + 64])
    settings = [Setting(Uniform(bits)) for bits in (8, 4, 3, 2)]
    scores = list(measure_fidelity(model, contexts, 1024, settings))
    kl = torch.tensor([[score.kl for score in row] for row in scores]).mean(0)
    assert kl[0] < 0.001
    for found, published in zip(kl[1:].tolist(), (0.0246, 0.174, 2.48), strict=True):
        assert published * 0.8 < found < published * 1.2
    bits = [score.bits_per_value for score in scores[0]]
    assert bits == pytest.approx([8.508, 4.508, 3.508, 2.508], abs=2e-3)


def test_raw_loses_nothing(smollm2: Any) -> None:
    model, tokenizer = smollm2
    text = (files("qkvshare.cli") / "manual.txt").read_text()
    ids = tokenizer(text)["input_ids"][:600]
    ((score,),) = measure_fidelity(model, [ids], 536, [Setting(Raw())])
    assert abs(score.kl) < 1e-7
    assert score.top1 == 1
    assert score.delta_nll == 0


def test_chat_messages(smollm2: Any) -> None:
    model, tokenizer = smollm2
    messages = [{"role": "user", "content": "Remember the number 4821."}]
    card = capture(model, tokenizer, messages)
    following = [*messages, {"role": "assistant", "content": "Yes."}]
    prompt = tokenizer.apply_chat_template(following, tokenize=True, return_dict=True)["input_ids"]
    arguments = card.inputs(model, tokenizer, prompt_ids=prompt)
    assert arguments["attention_mask"].shape[1] == len(prompt)


@pytest.mark.nightly
def test_transform_against_kivi(smollm2: Any) -> None:
    """The quality of 4.5 bits in 1.2, with a profile of a quarter of the usual contexts."""
    if not GSM8K.exists():
        pytest.skip("GSM8K is not beside the checkout")
    model, tokenizer = smollm2
    train = tokenizer(read_text(GSM8K.with_name("train-first-1500.jsonl")))["input_ids"]
    profile = calibrate(model, list(windows(train, 6, 1088)), 64)
    contexts = windows(tokenizer(read_text(GSM8K))["input_ids"], 4, 1088)
    settings = [Setting(Transform.of(profile), 1.2), Setting(Kivi(4))]
    transform, kivi = zip(*measure_fidelity(model, contexts, 1024, settings), strict=True)
    assert max(one.bits_per_value for one in transform) <= 1.2
    assert sum(one.kl for one in transform) < sum(one.kl for one in kivi)
