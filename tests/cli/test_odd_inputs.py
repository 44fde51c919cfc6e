"""Every verb, given what nobody should give it: one line that says so, never a traceback.

The model that the verbs are given is not there. So whatever is said of something else was said
before a model was loaded.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.main import get_command

from qkvshare import CacheCard
from qkvshare.cli.app import app
from qkvshare.profile import Profile
from qkvshare.store import Store

from ..cards import make_card
from ..conftest import tiny_tokenizer

NO_MODEL = "no-such-model"
_MODEL, _TEXT = {"model": NO_MODEL}, {"model": NO_MODEL, "text": "text.txt"}
_DATA = {"model": NO_MODEL, "data": "data.jsonl", "problems": "1"}

# Each verb with what it needs; the files are made in `place`.
VERBS: dict[str, dict[str, str]] = {
    "demo": {},
    "capture": {**_MODEL, "prompt": "x", "output": "new"},
    "resume": {**_MODEL, "card": "a.card"},
    "inspect": {"card": "a.card"},
    "verify": {**_MODEL, "card": "a.card"},
    "trim": {"card": "a.card", "output": "new", "budget": "3"},
    "calibrate": {**_TEXT, "output": "new"},
    "serve": {**_MODEL, "root": "store"},
    "mcp": {**_MODEL, "root": "store"},
    "eval fidelity": _TEXT,
    "eval recall": _TEXT,
    "eval relay": _DATA,
    "eval gsm8k": _DATA,
    "key new": {"path": "new"},
    "key signer": {"path": "new"},
    "bench capture": _TEXT,
    "bench codecs": _TEXT,
    "bench kernels": {},
    "bench store": {},
    "bench ttft": _TEXT,
    "store put": {"card": "a.card", "root": "store"},
    "store get": {"digest": "", "output": "new", "root": "store"},  # of any card in it
    "store ls": {"root": "store"},
    "store rm": {"digest": "", "root": "store"},
    "store gc": {"root": "store"},
    "store stats": {"root": "store"},
    "store audit": {"root": "store"},
}

# Names of no readable file, and of files with the wrong content.
NOWHERE = ["none", "text.txt/x", "n" * 300, "loop", "folder", "device", "socket"]
ANY_BYTES = ["empty", "bytes", "bom", "cut.card", "tensors"]
# As output: a new name is none of the odd ones, and a file would be replaced.
NO_OUTPUT = ["none/new", "text.txt/x", "n" * 300, "loop", "folder", "device", "socket", "pipe"]
NUMBERS = ["nan", "inf", "-inf", "-1", "1e400", "9" * 30, "9" * 5000, "", "x"]
STRATEGIES = [
    *("", ":", "gzip", "kivi:bits=nan", "kivi:bits=99", "lagrangian:floor=nan", "[/]"),
    *("attention:count=-1", "window:size=0", "expected:future=0", "recency:half_life=0"),
    *("salient:ahead=400", "chunk-router:chunk=0", "transform:refinements=1e9"),
]
SIZES = ["", "nan", "inf", "-1", "x", "9" * 400, "1e3", "0x10", "1PB"]

# What each option of text takes; whatever is in no list here fails `test_every_verb`.
WRONG: dict[str, list[str]] = {
    "card": [*NOWHERE, *ANY_BYTES, "model.profile", "pipe"],
    "profile": [*NOWHERE, *ANY_BYTES, "a.card", "pipe"],
    "text": [*NOWHERE, "empty", "bytes", "bom", "cut.card"],
    "data": [*NOWHERE, *ANY_BYTES, "bad.jsonl", "deep.jsonl"],
    "sign": [*NOWHERE, *ANY_BYTES],
    "key": [*NOWHERE, *ANY_BYTES, "env"],
    "trust": [*NOWHERE, "bytes", "cut.card"],
    "tokens": [*NOWHERE, *ANY_BYTES],
    "output": NO_OUTPUT,
    "json": NO_OUTPUT,
    "plot": [*NO_OUTPUT, "new", "new.txt"],
    "path": [*NO_OUTPUT, "text.txt"],
    "root": ["text.txt", "text.txt/x", "n" * 300, "loop", "device", "socket", "pipe"],
    "codec": STRATEGIES,
    "scorer": STRATEGIES,
    "allocator": STRATEGIES,
    "policy": ["", "x", "[/]"],
    "facts": ["", "x", "[/]"],
    "limit": SIZES,
    "max_body": SIZES,
    "max_card": SIZES,
    "big": SIZES,
    "http": ["", ":", "x", "h:99999", "127.0.0.1:0", "127.0.0.1:nan", "example.org:80", "[::1"],
    "host": ["", "example.org", "999.1.1.1", "["],
    "digest": ["zz", "0" * 64, "[/]", "../..", "%", "*", "n" * 300],
}
# Models that are not there, and text that may be anything: wrong or not, there is no traceback.
MODELS = ["", "text.txt", "device", "pipe", "folder", "damaged", "a/b/c", "../x", "n" * 300, "a b"]
ANYTHING = ["", "[/]", "\x1b[2J", "n" * 10_000]
FREE = {"prompt", "focus", "agent", "name", "tenant", "link"}
BENCH_PATH = ["", "x", "[/]"]  # of `bench ttft`: not a file


class TooLong(BaseException):
    """Nothing catches it."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of odd things, and where verbs run. What takes more than 30 s is ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QKVSHARE_KEY", "no key")
    # To build it takes ten times as long as most calls.
    monkeypatch.setattr("typer.main.get_command", lambda _: COMMAND)
    card = make_card()
    content = card.save("a.card").read_bytes()
    store = Store("store")
    store.put(card)
    store.close()
    Path("cut.card").write_bytes(content[:-20])
    Path("text.txt").write_text("Grain of sand. " * 4)
    record = '{"question": "How much is 2 + 2?", "answer": "2 + 2 = 4\\n#### 4"}\n'
    Path("data.jsonl").write_text(5 * record)
    Path("bad.jsonl").write_text('{"question": 1, "answer": null}\n')
    Path("deep.jsonl").write_text('{"a":' * 100_000)
    Path("empty").touch(mode=0o600)
    Path("bytes").write_bytes(b"caf\xe9\n")
    Path("bom").write_bytes(b"\xef\xbb\xbf")
    for name in ("bytes", "bom", "cut.card"):
        Path(name).chmod(0o600)  # as a key must be
    save_file({"x": np.zeros(1)}, "tensors")
    Profile("a" * 64, {"x": np.zeros(1)}).save(Path("model.profile"))
    Path("folder").mkdir()
    Path("damaged").mkdir()
    Path("damaged", "config.json").write_text('{"model_type": ["llama"]}')
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe", 0o600)
    os.mknod("socket", stat.S_IFSOCK | 0o600)
    try:
        os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:  # takes rights that few have
        Path("device").symlink_to(os.devnull)

    def end(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, end)
    yield tmp_path
    signal.signal(signal.SIGALRM, before)


def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All verbs with their names."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name}{word} ")
        else:
            yield name + word, command


COMMAND = get_command(app)
COMMANDS = dict(commands(COMMAND))


def command_line(verb: str, given: dict[str, str]) -> list[str]:
    """What is typed to give ``verb`` parameters by their names."""
    parameters = {parameter.name: parameter for parameter in COMMANDS[verb].params}
    options, arguments = [], []
    for name, value in given.items():
        parameter = parameters[name]
        if parameter.param_type_name == "argument":
            arguments.append(value)
        else:
            options.append(f"{max(parameter.opts, key=len)}={value}")
    return [*verb.split(), *options, "--", *arguments]


def complaint(call: Callable[[], tuple[int, str, str]]) -> tuple[int | None, str]:
    """Exit code, and what a verb said; code None for what a user must never see."""
    signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        code, _, err = call()
    except (Exception, TooLong) as error:
        return None, repr(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    lines = err.splitlines()
    if code == 1 and not (len(lines) == 1 and lines[0].startswith("error: ")):
        return None, f"not one line: {err}"
    if code == 2 and "Error" not in err:
        return None, f"no usage error: {err}"
    return code, err


def odd(verb: str, name: str, kind: Any) -> tuple[list[str], bool]:
    """Odd values of a parameter, and whether each of them must be refused by name."""
    kinds = {kind, *get_args(kind), *(part for each in get_args(kind) for part in get_args(each))}
    if bool in kinds:
        return [], True
    if kinds & {int, float}:
        return NUMBERS, True
    if name == "model":
        return MODELS, False
    if name in FREE:
        return ANYTHING, False
    if verb == "bench ttft" and name == "path":
        return BENCH_PATH, True
    return WRONG[name], True


def test_every_verb_is_here() -> None:
    assert set(COMMANDS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_odd_inputs(verb: str, run: Any, place: Path) -> None:
    before = {path: path.lstat().st_mode for path in place.iterdir()}
    problems = []
    hints = get_type_hints(inspect.unwrap(COMMANDS[verb].callback))
    for name in {parameter.name for parameter in COMMANDS[verb].params} & set(hints):
        values, refuse = odd(verb, name, hints[name])
        for value in values:
            given = VERBS[verb] | {name: value}
            if (verb, name) == ("capture", "text"):
                del given["prompt"]
            line = command_line(verb, given)
            code, said = complaint(lambda line=line: run(*line))  # type: ignore[misc]
            if code not in ((1, 2) if refuse else (0, 1, 2)) or (refuse and NO_MODEL in said):
                problems.append((" ".join(line)[-80:], code, said[-300:]))
    assert not problems
    assert {path: path.lstat().st_mode for path in place.iterdir()} == before


@pytest.mark.parametrize("verb", VERBS)
def test_text_that_is_not_utf8(verb: str, run: Any, place: Path) -> None:
    """Bytes that are not UTF-8 come as lone surrogates."""
    for value in ("caf\udce9", "hi \ud83d"):
        code, said = complaint(lambda value=value: run(*verb.split(), value))  # type: ignore[misc]
        assert code == 1, said
        assert "is not UTF-8" in said


# --- with a model -------------------------------------------------------------------------------


def test_text_is_captured_as_it_is(run: Any, llama_folder: Path, place: Path) -> None:
    """A byte order mark is no token, and a newline of two bytes is no other."""
    text = "one\r\ntwo\rthree\n"
    Path("marked").write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, _, err = run(
        *("capture", "-m", llama_folder, "--text", "marked", "-o", "new", "--codec", "raw")
    )
    assert code == 0, err
    assert CacheCard.load("new").token_ids.tolist() == tiny_tokenizer()(text)["input_ids"]


def _config(**changed: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").write_text("[]"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "cannot be loaded"),
        (_config(model_type="none"), "cannot be loaded"),
        (_config(num_key_value_heads=4), "cannot be loaded"),
        (_config(num_hidden_layers=5), "lacks 18 weights that its config asks for"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "cannot be loaded"),
    ],
)
def test_damaged_models(
    run: Any, llama_folder: Path, place: Path, damage: Callable[[Path], object], said: str
) -> None:
    """Weights that are not there are not made up either."""
    folder = place / "model"
    shutil.copytree(llama_folder, folder)
    damage(folder)
    code, found = complaint(lambda: run("verify", "a.card", "-m", folder))
    assert code == 1, found
    assert f"ModelNotFoundError: the model '{folder}' {said}" in found
