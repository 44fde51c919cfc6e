"""The command line of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qkvshare.hf.calibrate.calibrate import calibrate
from tests.conftest import some_ids, tiny_model, tiny_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog."


def test_fidelity(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    record = {"question": TEXT * 3, "answer": "Yes. " * 20}
    text.write_text("\n".join(json.dumps(record) for _ in range(4)))
    target = tmp_path / "rows.json"
    code, _, _ = run(
        *("fidelity", "--text", text, "-m", llama_folder, "--contexts", 3),
        *("--context-tokens", 60, "--continuation-tokens", 10, "--json", target),
        *("--codec", "raw", "--codec", "uniform"),
    )
    assert code == 0
    content = json.loads(target.read_text())
    assert content["schema"] == 1
    raw, uniform = content["rows"]
    assert raw["codec"] == "raw"
    assert raw["n"] == 3
    assert raw["kl"]["mean"] < 1e-6
    assert raw["top1"]["mean"] == 1
    assert uniform["kl"]["mean"] > 0
    assert uniform["kl"]["ci95"][0] <= uniform["kl"]["mean"] <= uniform["kl"]["ci95"][1]
    assert set(raw) == {
        *("model", "codec", "allocator", "scorer", "budget", "bits_per_value", "n", "kl"),
        *("top1", "delta_nll", "context_tokens", "continuation_tokens"),
    }
    code, _, err = run(
        *("fidelity", "--text", text, "-m", llama_folder, "--contexts", 300),
        *("--context-tokens", 60, "--continuation-tokens", 10),
    )
    assert code == 1
    assert "TextError: the text has" in err


def test_recall(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    # one character is one token: the tiny model has room for no more than a context of facts
    text = tmp_path / "text.txt"
    text.write_text("Grain of sand. " * 400)
    tiny_model(max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    code, out, _ = run(
        *("recall", "--text", text, "-m", tmp_path / "model", "--questions", 16),
        *("--context-tokens", 800, "--json", "-", "--codec", "raw", "--codec", "uniform"),
    )
    assert code == 0
    none, raw, uniform = json.loads(out)["rows"]
    assert [row["codec"] for row in (none, raw, uniform)] == ["none", "raw", "uniform"]
    assert raw["answer_nll"]["mean"] == pytest.approx(none["answer_nll"]["mean"], abs=1e-5)
    assert raw["exact"] == none["exact"]
    assert uniform["answer_nll"]["mean"] != raw["answer_nll"]["mean"]
    assert none["n"] == 16
    assert set(none) == {
        *("model", "codec", "allocator", "scorer", "budget", "bits_per_value", "n"),
        *("context_tokens", "exact", "answer_nll"),
    }
    code, out, _ = run(
        *("recall", "--text", text, "-m", tmp_path / "model", "--questions", 8),
        *("--context-tokens", 800, "--json", "-", "--bits", 4, "--focus"),
        *("--allocator", "lagrangian", "--allocator", "uniform"),
    )
    assert code == 0
    assert [row["scorer"] for row in json.loads(out)["rows"]] == [None, "attention (focus)", None]
    few = ["recall", "--text", text, "-m", tmp_path / "model", "--context-tokens"]
    code, _, err = run(*few, 100)
    assert code == 1
    assert "TextError: 8 facts in 100 tokens leave" in err


def test_over_hops(run: Any, tmp_path: Path) -> None:
    text, data, folder = tmp_path / "text.txt", tmp_path / "data.jsonl", tmp_path / "model"
    text.write_text("Grain of sand. " * 200)
    record = {"question": "How much is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}
    data.write_text("\n".join(5 * [json.dumps(record)]))
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    code, out, err = run(
        *("recall", "--text", text, "-m", folder, "--questions", 2, "--facts", "records"),
        *("--context-tokens", 1200, "--hops", 1, "--hops", 3, "--codec", "raw", "--json", "-"),
        *("--policy", "append", "--policy", "requantize"),
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["hops"], row["policy"], row["n"]) for row in rows] == [
        (hops, policy, 2) for hops in (1, 3) for policy in (None, "append", "requantize")
    ]
    code, out, err = run(
        *("gsm8k", "--data", data, "-m", folder, "--problems", 2, "--hops", 2),
        *("--codec", "raw", "--max-new-tokens", 5, "--json", "-"),
        *("--temperature", 1, "--seeds", 2),
    )
    assert code == 0, err
    none, raw = json.loads(out)["rows"]
    assert (none["codec"], raw["codec"], raw["hops"], raw["n"]) == ("none", "raw", 2, 4)
    assert raw["delta_points"]["mean"] == 0
    for wrong, message in (
        (("gsm8k", "--data", data, "--problems", 6), "has 5 problems, fewer than 6"),
        (("gsm8k", "--data", data, "--problems", 2, "--seeds", 2), "without sampling"),
        (("relay", "--data", data), "has 5 problems; 4 for the preamble and 150"),
        (("relay", "--data", data, "--policy", "forget"), "no policy 'forget'; expected one of"),
        (("relay", "--data", data, "--problems", 1, "--resume"), "--resume needs --json PATH"),
        (("recall", "--text", text, "--facts", "lies"), "no facts 'lies'; expected one of"),
        (("recall", "--text", text, "--policy", "append"), "give --hops"),
        (("recall", "--text", text, "--hops", 2, "--focus"), "without knowing the question"),
    ):
        code, _, err = run(*wrong, "-m", folder)
        assert code == 1
        assert message in err


def test_kernels(run: Any) -> None:
    small = ("kernels", "--layers", 2, "--tokens", 64, "--rounds", 2)
    code, out, _ = run(*small, "--bits", 0, "--bits", 3, "--threads", 1, "--json", "-")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [(row["kernel"], row["bits"], row["dtype"]) for row in rows] == [
        *(("decode", "mixed", "float32"), ("decode", "mixed", "bfloat16")),
        *(("encode", "mixed", "float32"), ("decode", 3, "float32")),
        *(("decode", 3, "bfloat16"), ("encode", 3, "float32")),
    ]
    for row in rows:
        assert row["bytes"] == 2 * 2 * 3 * 64 * 64 * (2 if row["dtype"] == "bfloat16" else 4)
        assert row["ms"]["n"] == 2
        assert row["bytes_per_second"] == 1000 * row["bytes"] / row["ms"]["median"]
    assert run(*small, "--bits", 7)[0] != 0


@pytest.fixture
def timed(run: Any, llama_folder: Path, tmp_path: Path) -> Any:
    """``ttft`` on a small model: exit code, rows and stderr."""
    text = tmp_path / "text.txt"
    text.write_text("Grain of sand. " * 20)

    def call(*arguments: Any) -> tuple[int, list[Any], str]:
        asked = ("ttft", "-m", llama_folder, "--text", text, "--rounds", 2, "--json", "-")
        code, out, err = run(*asked, *arguments)
        return code, json.loads(out)["rows"] if code == 0 else [], err

    return call


def test_ttft(timed: Any) -> None:
    code, rows, err = timed("--context-tokens", 60, "--context-tokens", 90)
    assert code == 0, err
    cards = ["card", "card-file", "card-half", "card-codes"]
    paths = ["re-prefill", "resident", "full-precision-file", *cards]
    assert [(row["context_tokens"], row["path"]) for row in rows] == [
        (tokens, path) for tokens in (60, 90) for path in paths
    ]
    for row in rows:
        assert row["ttft_ms"]["n"] == row["decode_ms_per_token"]["n"] == 2
        assert row["ttft_ms"]["median"] > 0
        assert list(row["stages_ms"]) == ["open", "inject", "forward", "sample"]
        assert row["new_tokens"] == 11
        assert row["link_mbit"] is row["peak_extra_bytes"] is None
    assert set(rows[3]["alone_ms"]) == {"verify", "decode"}
    assert set(rows[4]["alone_ms"]) == {"read", "verify", "decode"}
    assert rows[3]["bytes"] == rows[4]["bytes"] == rows[5]["bytes"] == rows[6]["bytes"]
    assert rows[3]["cache_bytes"] == rows[1]["cache_bytes"] == 2 * rows[5]["cache_bytes"]
    assert rows[6]["cache_bytes"] > rows[6]["bytes"] / 2
    assert rows[0]["bytes"] == 4 * 60
    code, _, err = timed("--path", "guess")
    assert code == 1
    assert "no path 'guess'; expected one of re-prefill" in err


def test_ttft_over_a_link(timed: Any) -> None:
    """What cannot cross is left out; the time is that of the bytes."""
    code, rows, err = timed(
        *("--context-tokens", 90, "--codec", "packed", "--codec", "raw", "--bandwidth", 1)
    )
    assert code == 0, err
    assert [(row["path"], row["codec"]) for row in rows] == [
        ("re-prefill", "none"),
        ("full-precision-file", "none"),
        ("card-file", "packed"),
        ("card-file", "raw"),
    ]
    for row in rows:
        crossing = row["stages_ms"]["link"]["median"]
        assert row["link_mbit"] == 1
        assert crossing >= 8 * row["bytes"] / 1e6 * 1000
        assert row["ttft_ms"]["median"] > crossing


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's counters")
def test_ttft_memory(timed: Any) -> None:
    code, rows, err = timed(
        *("--context-tokens", 90, "--memory", "--path", "card-file", "--path", "resident"),
        *("--path", "card-half"),
    )
    assert code == 0, err
    assert rows[0]["peak_extra_bytes"] < 50_000_000
    assert rows[1]["peak_extra_bytes"] is None
    assert rows[2]["peak_extra_bytes"] < 50_000_000


@pytest.mark.parametrize(("package", "codec"), [("hqq", "hqq-4"), ("optimum.quanto", "quanto-4")])
def test_ttft_of_transformers_caches(timed: Any, package: str, codec: str) -> None:
    """With the extra ``peers``."""
    pytest.importorskip(package)
    code, rows, err = timed(
        *("--context-tokens", 200, "--path", "hf-quantized", "--path", "resident")
    )
    assert code == 0, err
    row = next(row for row in rows if row["codec"] == codec)
    assert row["path"] == "hf-quantized"
    assert row["bytes"] < rows[-1]["bytes"] / 4


def test_ttft_says_what_is_not_installed(timed: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("benchmarks.timing.peers.find_spec", lambda name: None)
    code, _, err = timed("--path", "llama.cpp")
    assert code == 1
    assert "path 'llama.cpp' needs llama_cpp, which is not installed" in err
    assert "hqq" in timed("--path", "hf-quantized")[2]


def test_capture(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Grain of sand. " * 10)
    code, out, err = run(
        *("capture", "-m", llama_folder, "--text", text, "--context-tokens", 100),
        *("--context-tokens", 50, "--rounds", 1, "--bits", 8, "--json", "-"),
    )
    assert code == 0, err
    one, two = json.loads(out)["rows"]
    assert (one["context_tokens"], two["context_tokens"]) == (100, 50)
    ratio = one["capture_ms"]["median"] / one["prefill_ms"]["median"]
    assert one["overhead"]["median"] == pytest.approx(ratio - 1)


def test_codecs(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Grain of sand. " * 10)
    asked = ("--context-tokens", 100, "--codec", "packed", "--codec", "kivi:bits=3")
    code, out, err = run(
        *("codecs", "-m", llama_folder, "--text", text, *asked, "--rounds", 2),
        *("--json", "-"),
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["codec"] for row in rows] == ["packed", "kivi:bits=3"]
    for row in rows:
        speed = row["decode_values_per_second"] * row["decode_ms"]["median"]
        assert speed == pytest.approx(row["encode_values_per_second"] * row["encode_ms"]["median"])


def test_fidelity_of_the_transform(
    run: Any, llama: Any, llama_folder: Path, tmp_path: Path
) -> None:
    text, profile = tmp_path / "text.txt", tmp_path / "own.profile"
    text.write_text("Grain of sand. " * 20)
    calibrate(llama, [some_ids(100), some_ids(100, seed=1)], 20).save(profile)
    code, out, err = run(
        *("fidelity", "-m", llama_folder, "--text", text, "--contexts", 2, "--json", "-"),
        *("--context-tokens", 80, "--continuation-tokens", 10, "--profile", profile),
        *("--codec", "transform", "--scorer", "attention", "--scorer", "key-norm"),
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    spent = [(row["codec"], row["allocator"], row["scorer"]) for row in rows]
    assert spent == [("transform", "smooth", name) for name in ("attention", "key-norm")]


def test_train_then_allocate(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    text, profile = tmp_path / "text.txt", tmp_path / "learned.profile"
    text.write_text("Grain of sand. " * 20)
    code, out, err = run(
        *("train", "-m", llama_folder, "--text", text, "-o", profile, "--contexts", 2),
        *("--context-tokens", 80, "--following-tokens", 10),
    )
    assert code == 0, err
    assert "learned from 2 contexts" in " ".join(out.split())
    asked = ("fidelity", "-m", llama_folder, "--text", text, "--contexts", 2, "--json", "-")
    sizes = ("--context-tokens", 80, "--continuation-tokens", 10, "--bits", 9)
    code, out, err = run(*asked, *sizes, "--allocator", "controller", "--profile", profile)
    assert code == 0, err
    assert json.loads(out)["rows"][0]["allocator"] == "controller"
    code, _, err = run(*asked, *sizes, "--allocator", "controller")
    assert code == 1
    assert "ProfileError: the allocator 'controller' is learned" in err
