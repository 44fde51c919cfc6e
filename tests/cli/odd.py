"""What nobody should give a verb, and what it may say then: one line, never a traceback.

The model that the verbs are given is not there. So whatever is said of something else was said
before a model was loaded.
"""

from __future__ import annotations

import inspect
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from safetensors.numpy import save_file

from qkvshare.profile import Profile
from qkvshare.store import Store

from ..cards import make_card

NO_MODEL = "no-such-model"
MODEL, TEXT = {"model": NO_MODEL}, {"model": NO_MODEL, "text": "text.txt"}
DATA = {"model": NO_MODEL, "data": "data.jsonl", "problems": "1"}

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
    "reuse": ["", "x", "[/]"],
    "arm": ["", "x", "[/]"],
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
FREE = {"prompt", "agent", "name", "tenant", "link"}
TTFT_PATH = ["", "x", "[/]"]  # of `benchmarks ttft`: not a file


class TooLong(BaseException):
    """Nothing catches it."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> Iterator[Path]:
    """A folder of odd things, and where verbs run. What takes more than 30 s is ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QKVSHARE_KEY", "no key")
    # To build it takes ten times as long as most calls.
    monkeypatch.setattr("typer.main.get_command", lambda _: command)
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


def command_line(command: Any, verb: str, given: dict[str, str]) -> list[str]:
    """What is typed to give ``verb`` parameters by their names."""
    parameters = {parameter.name: parameter for parameter in command.params}
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
    if verb == "ttft" and name == "path":
        return TTFT_PATH, True
    return WRONG[name], True


def require_refusals(command: Any, verb: str, known: dict[str, str], run: Any, place: Path) -> None:
    """Give ``verb`` odd values, one by one; ``known`` is what it needs besides."""
    before = {path: path.lstat().st_mode for path in place.iterdir()}
    problems = []
    hints = get_type_hints(inspect.unwrap(command.callback))
    for name in {parameter.name for parameter in command.params} & set(hints):
        values, refuse = odd(verb, name, hints[name])
        for value in values:
            given = known | {name: value}
            if name == "text" and "prompt" in known:
                del given["prompt"]
            line = command_line(command, verb, given)
            code, said = complaint(lambda line=line: run(*line))  # type: ignore[misc]
            if code not in ((1, 2) if refuse else (0, 1, 2)) or (refuse and NO_MODEL in said):
                problems.append((" ".join(line)[-80:], code, said[-300:]))
    assert not problems
    assert {path: path.lstat().st_mode for path in place.iterdir()} == before
    _require_utf8(verb, run)


def _require_utf8(verb: str, run: Any) -> None:
    """Bytes that are not UTF-8 come as lone surrogates."""
    for value in ("caf\udce9", "hi \ud83d"):
        code, said = complaint(lambda value=value: run(*verb.split(), value))  # type: ignore[misc]
        assert code == 1, said
        assert "is not UTF-8" in said
