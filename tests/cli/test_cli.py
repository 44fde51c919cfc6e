"""The command line as a user has it: results on stdout, errors in one line, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.codecs import Uniform
from qkvshare import CacheCard
from qkvshare.card import Key, Signer
from qkvshare.store import Store

from ..cards import make_card
from ..conftest import greedy_from_text, tiny_model, tiny_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture
def card(run: Any, llama_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "a.card"
    code, out, _ = run(
        "capture", "-m", llama_folder, "--prompt", TEXT, "-o", path, "--codec", "raw"
    )
    assert code == 0
    assert f"{len(TEXT)} tokens" in out
    return path


def ids(text: str) -> list[int]:
    return list(tiny_tokenizer()(text)["input_ids"])


def test_capture_and_resume(run: Any, card: Path, llama: Any, llama_folder: Path) -> None:
    code, out, _ = run(
        "resume", card, "-m", llama_folder, "-p", " And then?", "--max-new-tokens", 12
    )
    assert code == 0
    expected = greedy_from_text(llama, ids(TEXT + " And then?"), 12)
    assert out == tiny_tokenizer().decode(expected, skip_special_tokens=True) + "\n"


def test_resume_policies(
    run: Any, card: Path, llama: Any, llama_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("QKVSHARE_CACHE", str(tmp_path / "cache"))
    expected = greedy_from_text(llama, ids(TEXT + " And then?"), 12)
    text = tiny_tokenizer().decode(expected, skip_special_tokens=True) + "\n"
    asked = ("resume", card, "-m", llama_folder, "-p", " And then?", "--max-new-tokens", 12)
    assert run(*asked, "--policy", "prefill")[:2] == (0, text)
    code, out, err = run(*asked, "--policy", "auto")
    assert (code, out) == (0, text)
    assert "ms expected from the card" in err
    code, out, err = run(*asked, "--policy", "auto", "--link", 0.001)
    assert (code, out) == (0, text)
    assert "policy prefill:" in err
    assert run(*asked, "--policy", "guess")[0] != 0


def test_resume_hands_on_from_a_lossy_card(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    path, longer = tmp_path / "a", tmp_path / "b"
    assert run("capture", "-m", llama_folder, "--prompt", TEXT, "-o", path)[0] == 0
    more = ["-m", llama_folder, "--max-new-tokens", 5, "-o", longer]
    assert run("resume", path, *more, "-p", " More")[0] == 0
    assert CacheCard.load(longer).blob(2, 0).tobytes() == CacheCard.load(path).blob(2, 0).tobytes()


def test_resume_hands_on(run: Any, card: Path, llama: Any, llama_folder: Path) -> None:
    second, third = card.with_name("b.card"), card.with_name("c.card")
    more = ["-m", llama_folder, "--max-new-tokens", 5]
    assert run("resume", card, *more, "-p", " More", "-o", second, "--agent", "B")[0] == 0
    assert run("resume", second, *more, "-o", third)[0] == 0  # an exact hit
    known = ids(TEXT + " More")
    known += greedy_from_text(llama, known, 5)
    assert CacheCard.load(second).token_ids.tolist() == known
    known += greedy_from_text(llama, known, 5)
    last = CacheCard.load(third)
    assert last.token_ids.tolist() == known
    assert [segment.end for segment in last.manifest.segments] == [
        len(TEXT),
        len(TEXT) + 10,
        len(TEXT) + 15,
    ]
    assert [hop.agent for hop in last.manifest.lineage] == ["", "B", ""]
    assert last.blob(1, 0).tobytes() == CacheCard.load(card).blob(1, 0).tobytes()


def test_capture_a_file(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    path = tmp_path / "card"
    code, _, _ = run(
        "capture", "-m", llama_folder, "--text", tmp_path / "text", "-o", path, "--bits", 200
    )
    assert code == 0
    assert CacheCard.load(path).token_ids.tolist() == ids(TEXT)
    assert CacheCard.load(path).manifest.segments[0].allocation.budget == 200


def test_inspect(run: Any, card: Path, tmp_path: Path) -> None:
    plot = tmp_path / "bits.png"
    code, out, _ = run("inspect", card, "--json", tmp_path / "card.json", "--plot", plot)
    assert code == 0
    assert CacheCard.load(card).digest in out.replace("\n", "").replace(" ", "")
    assert plot.read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "card.json").read_text())
    sizes = content["bytes"]
    assert sizes.pop("total") == sum(sizes.values()) == card.stat().st_size
    assert content["manifest"]["identity"] == json.loads(
        json.dumps(content["manifest"]["identity"])
    )
    code, out, _ = run("inspect", card, "--json", "-")
    assert json.loads(out) == content | {"bytes": sizes | {"total": card.stat().st_size}}


def test_an_error_does_nothing_to_the_terminal(run: Any) -> None:
    code, _, err = run("inspect", "no\x1b[2J\n")
    assert code == 1
    assert "\x1b" not in err
    assert "no\\x1b[2J\\n" in err


@pytest.mark.parametrize("compact", [False, True])
def test_mean_bits_of_tokens_and_layers(compact: bool) -> None:
    from qkvshare.codecs.stats import mean_bits

    card = make_card(Uniform(4), (6, 3))
    card = card.compact() if compact else card
    grid = np.zeros((2, 9))
    for number, layer in enumerate(card.manifest.layers):
        for run in card.manifest.runs:
            blob = card.blob(number, run.segment)
            held = run.held(number)
            nbytes = len(blob if run.spans is None else blob[run.spans[number]])
            width = layer.kv_heads * (layer.head_dim + layer.v_head_dim)
            grid[number, run.end - held : run.end] = 8 * nbytes / (held * width)
    of_token, of_layer = mean_bits(card)
    assert of_token == pytest.approx(grid.mean(axis=0))
    assert of_layer == pytest.approx(grid.mean(axis=1))


def test_inspect_and_verify_of_a_card_with_windows(run: Any, tmp_path: Path) -> None:
    path = make_card().save(tmp_path / "card")
    code, out, _ = run("inspect", path, "--plot", tmp_path / "bits.svg")
    assert code == 0
    assert "1 full 2×8, 1 sliding 2×8" in out
    code, out, _ = run("verify", path)
    assert code == 0
    assert "digests: ok" in out


def test_a_card_of_states_alone(run: Any, tmp_path: Path) -> None:
    path = make_card(states=True, geometry=[]).save(tmp_path / "card")
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "layers         none" in out
    assert "bits per value" not in out
    code, out, _ = run("inspect", path, "--json", "-")
    assert json.loads(out)["bits_per_value"] is None
    code, out, _ = run("verify", path)
    assert (code, "digests: ok" in out) == (0, True)
    for verb in (
        ("inspect", path, "--plot", tmp_path / "bits.png"),
        ("trim", path, "-o", tmp_path / "smaller", "--bits", 4),
    ):
        code, _, err = run(*verb)
        assert code == 1
        assert "states alone" in err
    assert [at.name for at in tmp_path.iterdir()] == ["card"]


def test_verify(run: Any, card: Path, llama_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("verify", card, "-m", llama_folder)
    assert code == 0
    assert "identity: ok" in out
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    code, _, err = run("verify", card, "-m", tmp_path / "other")
    assert code == 1
    assert err.startswith("error: IdentityError: the card belongs to another model: weights")


def test_errors_are_one_line_and_leave_nothing(
    run: Any, card: Path, llama_folder: Path, tmp_path: Path
) -> None:
    content = card.read_bytes()
    damaged, target = tmp_path / "damaged", tmp_path / "out"
    damaged.write_bytes(content[:-20])
    flipped = tmp_path / "flipped"
    flipped.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    model = ["-m", llama_folder]
    cases: list[tuple[str, list[object]]] = [
        ("CardFormatError", ["inspect", damaged]),
        ("CardFormatError", ["verify", damaged]),
        ("CardDigestError", ["verify", flipped]),
        ("CardDigestError", ["resume", flipped, *model, "-p", "x", "-o", target]),
        ("CardNotFoundError", ["resume", tmp_path / "none", *model, "-p", "x"]),
        ("ModelNotFoundError", ["resume", card, "-m", tmp_path / "none", "-p", "x"]),
        ("PromptError", ["resume", card, *model, "-p", "x" * 300]),
        ("CaptureError", ["capture", *model, "--prompt", "", "-o", target]),
        ("CaptureError", ["capture", *model, "--text", tmp_path / "none", "-o", target]),
        ("CaptureError", ["capture", *model, "--text", card, "-o", target]),
        ("CodecError", ["capture", *model, "--prompt", "x", "-o", target, "--codec", "gzip"]),
        ("BudgetError", ["capture", *model, "--prompt", "x", "-o", target, "--bits", "1"]),
        ("OutputError", ["capture", *model, "--prompt", "x", "-o", tmp_path / "no" / "card"]),
        ("OutputError", ["inspect", card, "--plot", tmp_path / "no" / "plot.png"]),
        ("OutputError", ["inspect", card, "--json", tmp_path / "no" / "card.json"]),
    ]
    for name, arguments in cases:
        code, _, err = run(*arguments)
        assert code == 1, arguments
        last = err.strip().splitlines()[-1]
        assert last.startswith(f"error: {name}: "), (arguments, err)
        assert "Traceback" not in err
        assert not target.exists()


def test_usage_errors(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    assert run("capture", "-m", llama_folder, "-o", tmp_path / "card")[0] == 2
    assert run("frobnicate")[0] == 2
    for verb in ("demo", "capture", "resume", "inspect", "verify"):
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert "Usage" in out


def test_calibrate_then_capture(run: Any, llama_folder: Path, tmp_path: Path) -> None:
    text, profile = tmp_path / "text.txt", tmp_path / "model.profile"
    text.write_text("Grain of sand. " * 14)
    code, out, err = run(
        *("calibrate", "-m", llama_folder, "--text", text, "-o", profile, "--contexts", 1),
        *("--other-contexts", 5, "--context-tokens", 80, "--following-tokens", 10),
    )
    assert code == 0, err
    assert "1 contexts of the text, 1 in other languages and 4 that the model wrote" in " ".join(
        out.split()
    )
    made = ("capture", "-m", llama_folder, "--text", text, "-o", tmp_path / "card")
    code, _, err = run(*made, "--profile", profile)
    assert code == 0, err
    assert CacheCard.load(tmp_path / "card").manifest.segments[0].codec.name == "transform"


def test_looking_at_a_card_imports_no_transformers(tmp_path: Path) -> None:
    path = make_card().save(tmp_path / "card")
    script = (
        "import sys; sys.argv = ['qkvshare', 'inspect', sys.argv[1]]\n"
        "from qkvshare.cli.main import main\n"
        "try: main()\n"
        "finally: assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_calibrate_refuses_a_bad_folder_before_it_works(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No such model either: what is wrong with the folder is said before it is loaded.
    asked = ("calibrate", "-m", tmp_path / "no model")
    code, _, err = run(*asked, "-o", tmp_path / "missing" / "profile")
    assert code == 1
    assert "cannot be written: No such file or directory" in err
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QKVSHARE_PROFILES", str(tmp_path / "file" / "folder"))
    code, _, err = run(*asked)
    assert code == 1
    assert "cannot be made" in " ".join(err.split())


def test_capture_takes_the_profile_at_hand(
    run: Any, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, path = tmp_path / "hand", tmp_path / "card"
    model = ["-m", llama_folder]
    sizes = [
        "--contexts",
        2,
        "--other-contexts",
        0,
        "--context-tokens",
        80,
        "--following-tokens",
        10,
    ]
    monkeypatch.setenv("QKVSHARE_PROFILES", str(hand))
    code, out, err = run("calibrate", *model, *sizes)
    assert code == 0, err
    assert str(hand) in out.replace("\n", "")
    code, out, _ = run("capture", *model, "--prompt", TEXT, "-o", path)
    assert code == 0
    assert "transform" in out
    assert "profile" in out
    code, said, _ = run("resume", path, *model, "-p", " And", "--max-new-tokens", 4)
    assert code == 0
    whole, less = tmp_path / "whole", tmp_path / "less"
    asked = ["--codec", "transform:refinements=1", "-o", whole]
    assert run("capture", *model, "--prompt", TEXT, *asked)[0] == 0
    budget = CacheCard.load(whole).bits_per_value - 0.2
    code, out, _ = run("trim", whole, "-o", less, "--bits", budget)
    assert code == 0
    assert CacheCard.load(less).bits_per_value <= budget
    assert run("resume", less, *model, "-p", " And", "--max-new-tokens", 4)[0] == 0
    assert "cannot be trimmed" in run("trim", less, "-o", whole, "--bits", 0.01)[2]
    (profile,) = hand.iterdir()
    monkeypatch.setenv("QKVSHARE_PROFILES", str(tmp_path / "elsewhere"))
    from qkvshare.profile import _known

    _known.clear()  # as in another process
    from qkvshare.codecs.transform import _basis

    _basis.cache_clear()
    code, _, err = run("resume", path, *model, "-p", " And", "--max-new-tokens", 4)
    assert code != 0
    assert "not at hand" in " ".join(err.split())
    again = run("resume", path, *model, "-p", " And", "--max-new-tokens", 4, "--profile", profile)
    assert again[:2] == (0, said)


# --- keys ---------------------------------------------------------------------------------------


@pytest.fixture
def keys(run: Any, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A key, a signer, and a file that trusts the signer."""
    key, signer, trust = tmp_path / "key", tmp_path / "signer", tmp_path / "trust"
    code, out, _ = run("key", "new", key)
    assert code == 0
    assert key.read_text().strip() not in out
    code, public, _ = run("key", "signer", signer)
    assert code == 0
    trust.write_text(public)
    return key, signer, trust


def test_keys_are_never_overwritten(run: Any, keys: tuple[Path, Path, Path]) -> None:
    for verb, path in zip(("new", "signer"), keys[:2], strict=True):
        before = path.read_bytes()
        code, _, err = run("key", verb, path)
        assert code == 1
        assert "SecretError" in err
        assert path.read_bytes() == before


def test_sealed_and_signed_from_capture_to_resume(
    run: Any, keys: tuple[Path, Path, Path], llama: Any, llama_folder: Path, tmp_path: Path
) -> None:
    key, signer, trust = keys
    path, longer = tmp_path / "a", tmp_path / "b"
    made = ("capture", "-m", llama_folder, "--prompt", TEXT, "-o", path, "--codec", "raw")
    assert run(*made, "--key", key, "--sign", signer)[0] == 0
    assert TEXT.encode() not in path.read_bytes()
    code, out, _ = run("verify", path, "--key", key, "--trust", trust)
    assert code == 0
    assert "signature: ok" in out
    for verb in (["verify"], ["inspect"], ["resume", "-m", llama_folder], ["trim", "-o", longer]):
        more = ["--bits", 1] if verb[0] == "trim" else []
        code, _, err = run(*verb, path, *more)
        assert code == 1
        assert "CardKeyError" in err
    sure = ("-m", llama_folder, "-p", " And", "--max-new-tokens", 8, "--key", key)
    code, out, _ = run("resume", path, *sure, "--trust", trust, "-o", longer)
    assert code == 0
    expected = greedy_from_text(llama, ids(TEXT + " And"), 8)
    assert out == tiny_tokenizer().decode(expected, skip_special_tokens=True) + "\n"
    # what is handed on is sealed too, and signed by nobody yet
    code, out, _ = run("inspect", longer, "--key", key, "--json", "-")
    content = json.loads(out)
    assert (content["sealed"], content["signature"]) == (True, None)
    code, _, err = run("verify", longer, "--key", key, "--trust", trust)
    assert code == 1
    assert "CardSignatureError" in err


def test_trim_keeps_a_card_sealed(
    run: Any, keys: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ..codecs.test_trimming import refined

    key, path, small = keys[0], tmp_path / "a", tmp_path / "b"
    monkeypatch.setenv("QKVSHARE_KEY", key.read_text().strip())
    card = refined(1)
    card.save(path, key=Key.load(key))
    budget = card.bits_per_value - 0.1
    code, out, _ = run("trim", path, "-o", small, "--bits", budget, "--key", "env")
    assert code == 0
    assert f"{small.stat().st_size:,} of {path.stat().st_size:,} bytes" in " ".join(out.split())
    assert CacheCard.load(small, key=Key.load(key)).nbytes < card.nbytes


def test_inspect_shows_secrets_state(
    run: Any, keys: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    signer = Signer.load(keys[1])
    path = make_card(salt="5a" * 32).signed(signer).save(tmp_path / "a", key=Key.load(keys[0]))
    out = run("inspect", path, "--key", keys[0])[1].replace("\n", "").replace(" ", "")
    assert "sealedyes" in out
    assert "5a" * 32 in out
    assert signer.public in out
    assert "sealedno" in run("inspect", make_card().save(path))[1].replace(" ", "")


def test_prompts_find_a_stored_card_if_its_owner_vouches(run: Any, tmp_path: Path) -> None:
    card = make_card().save(tmp_path / "a.card")
    root = str(tmp_path / "store")
    for options, vouched in (([], False), (["--vouch"], True)):
        assert run("store", "put", card, "--store", root, *options)[0] == 0
        with closing(Store(root)) as store:
            assert store.vouched(CacheCard.load(card).digest) is vouched
