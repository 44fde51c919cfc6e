"""The MCP server as agents meet it: the SDK's own client, and servers in processes of their own."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import CallToolResult, ResourceLink

from qkvshare import CacheCard, capture
from qkvshare.hf.model.load import load_model
from qkvshare.hf.session.answers import Keep, Sampling
from qkvshare.hf.session.session import Session
from qkvshare.serve.mcp import MEDIA_TYPE, server
from qkvshare.store import Store

from ..conftest import tiny_model, tiny_tokenizer

TEXT = "The tide is high at noon."
ASK = "When is it?"
BAD = "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cards"


@pytest.fixture(scope="module")
def session(llama_folder: Path) -> Session:
    """What the servers have, in this process: the reference."""
    return Session(*load_model(str(llama_folder)))


def arguments(model: Path, folder: Path, *more: str) -> list[str]:
    return ["-m", "qkvshare", "mcp", "-m", str(model), "--store", str(folder), *more]


@asynccontextmanager
async def stdio(model: Path, folder: Path, *more: str, mode: Any = "auto") -> AsyncIterator[Client]:
    """A client with a server of its own."""
    command = arguments(model, folder, *more)
    started = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
    async with Client(started, mode=mode) as client:
        yield client


@asynccontextmanager
async def http(model: Path, folder: Path, *more: str) -> AsyncIterator[str]:
    """The URL of a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments(model, folder, "--http", place, *more),
        stdout=subprocess.PIPE,
    )
    try:
        while True:
            assert process.returncode is None
            try:
                _, writer = await asyncio.open_connection(*place.split(":"))
                break
            except OSError:
                await asyncio.sleep(0.1)
        writer.close()
        yield f"http://{place}"
    finally:
        process.kill()
        printed, _ = await process.communicate()
        assert printed == b""


async def call(client: Client, tool: str, **given: Any) -> Any:
    """The structured result of a call that works, which its text says, too."""
    result = await client.call_tool(tool, given)
    assert not result.is_error, result.content
    content = result.structured_content
    if tool != "list_cards":
        assert json.loads(result.content[0].text) == content
    return content


async def refused(client: Client, tool: str, **given: Any) -> str:
    """What a call that must fail says."""
    result = await client.call_tool(tool, given)
    assert result.is_error
    (content,) = result.content
    assert "Traceback" not in content.text
    return str(content.text)


def link_in(result: CallToolResult) -> ResourceLink:
    (found,) = [each for each in result.content if isinstance(each, ResourceLink)]
    return found


async def file_of(client: Client, uri: str) -> bytes:
    (content,) = (await client.read_resource(uri)).contents
    assert content.mime_type == MEDIA_TYPE
    return base64.b64decode(content.blob)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 240))


def expected(session: Session, store: Store, digest: str, tokens: int = 8) -> str:
    prompt = session.prompt(store, [{"role": "user", "content": ASK}], digest)
    return session.answer(prompt, Sampling(tokens)).text


@pytest.mark.slow
def test_what_one_agents_server_captures_anothers_resumes(
    llama_folder: Path, folder: Path, session: Session, tmp_path: Path
) -> None:
    """Two servers, two processes, one store; B's client speaks what was usual before 2026-07-28."""

    async def pair() -> None:
        async with stdio(llama_folder, folder) as client:
            a = await call(client, "capture", text=TEXT, agent="a")
        store = Store(folder)
        card = store.get(a["digest"])
        own = capture(session.model, session.tokenizer, TEXT, agent="a")
        assert card.manifest.segments == own.manifest.segments
        assert (a["tokens"], a["bytes"]) == (len(TEXT), card.nbytes)
        assert a["bits_per_value"] == pytest.approx(card.bits_per_value)

        async with stdio(llama_folder, folder, mode="legacy") as client:
            b = await call(
                client,
                "resume",
                card=a["digest"],
                prompt=ASK,
                max_tokens=8,
                keep=True,
                agent="b",
            )
            assert b["text"] == expected(session, store, a["digest"])
            assert b["cached_tokens"] == len(TEXT) < b["prompt_tokens"]
            assert (b["finish"], b["new_tokens"]) == ("length", 8)

            listed = (await call(client, "list_cards"))["result"]
            assert {each["digest"]: each["agent"] for each in listed} == {
                a["digest"]: "a",
                b["card"]: "b",
            }
            assert len((await call(client, "list_cards", limit=1))["result"]) == 1

            told = await call(client, "inspect", card=b["card"][:8])
            child = store.get(b["card"])
            assert [hop["agent"] for hop in told["lineage"]] == ["a", "b"]
            assert told["lineage"][1]["parent"] == a["digest"]
            assert told["identity"]["weights"] == session.identity.weights
            assert [(at["start"], at["end"]) for at in told["segments"]] == [
                (0, len(TEXT)),
                (len(TEXT), child.tokens),
            ]
            assert told["segments"][0]["codec"]["name"] == "packed"

            path = tmp_path / "fetched.card"
            path.write_bytes(await file_of(client, f"card://{b['card']}"))
            fetched = CacheCard.load(path)
            fetched.verify()
            assert fetched.digest == b["card"]
            assert path.read_bytes() == child.save(tmp_path / "saved.card").read_bytes()

    run(pair())


@pytest.mark.slow
def test_over_http_two_agents_share_a_server_and_big_cards_go_by_link(
    llama_folder: Path, folder: Path, session: Session, tmp_path: Path
) -> None:
    async def pair() -> None:
        async with (
            http(llama_folder, folder, "--big", "1KB") as url,
            Client(f"{url}/mcp") as a,
            Client(f"{url}/mcp") as b,
        ):
            read = await a.call_tool("capture", {"text": TEXT})
            digest, link = read.structured_content["digest"], link_in(read)
            said = await call(b, "resume", card=digest, prompt=ASK, max_tokens=8)
            store = Store(folder)
            assert said["text"] == expected(session, store, digest)

            assert link.uri == f"{url}/v1/cards/{digest}"
            with pytest.raises(MCPError, match=rf"{link.size:,} bytes.*{link.uri}"):
                await b.read_resource(f"card://{digest}")
            path = tmp_path / "fetched.card"
            await asyncio.to_thread(urllib.request.urlretrieve, link.uri, path)
            assert path.read_bytes() == store.get(digest).to_bytes()
            assert path.stat().st_size == link.size
            foreign = urllib.request.Request(link.uri, headers={"Host": "evil.example"})
            assert await status_of(foreign) == 421
            for wrong in (BAD, digest[:8], "..%2F..%2Fdefault", "%00"):
                assert await status_of(f"{url}/v1/cards/{wrong}") == 404

    run(pair())


async def status_of(request: Any) -> int:
    with pytest.raises(urllib.error.HTTPError) as raised:
        await asyncio.to_thread(urllib.request.urlopen, request)
    raised.value.close()
    return raised.value.code


def test_a_card_waits_for_the_tool_of_its_agent(folder: Path, session: Session) -> None:
    store = Store(folder)

    async def ask() -> None:
        async with Client(server(session, store)) as client:
            read = await call(client, "capture", text=TEXT, waits_on="search")
            assert store.index.row("SELECT card FROM waiting")["card"] == read["digest"]
            await call(client, "resume", card=read["digest"], prompt=ASK, keep=True, waits_on="run")
            assert store.index.row("SELECT tool FROM waited")["tool"] == "search"
            assert store.index.row("SELECT tool FROM waiting")["tool"] == "run"

    run(ask())


def test_links_are_to_where_a_card_can_be_got(folder: Path, session: Session) -> None:
    store, elsewhere = Store(folder), "http://127.0.0.1:1/v1/cards"
    digest = str(session.read(TEXT, store, Keep()).card)
    size = store.get(digest).nbytes

    async def told(**how: Any) -> list[str]:
        async with Client(server(session, store, **how)) as client:
            result = await client.call_tool("inspect", {"card": digest})
            if how.get("big", size) >= size:
                assert len(await file_of(client, f"card://{digest}")) == size
            else:
                where = how.get("link") or "qkvshare store get"
                with pytest.raises(MCPError, match=f"{size:,} bytes.*{where}"):
                    await client.read_resource(f"card://{digest}")
            return [link.uri for link in result.content if isinstance(link, ResourceLink)]

    async def ask() -> None:
        assert await told() == [f"card://{digest}"]
        assert await told(big=size, link=elsewhere) == [f"card://{digest}"]
        assert await told(big=size - 1, link=elsewhere) == [f"{elsewhere}/{digest}"]
        assert await told(big=size - 1) == []

    run(ask())


@pytest.mark.slow
def test_what_cannot_be_done_says_why(llama_folder: Path, folder: Path) -> None:
    """All on one server, which goes on serving."""
    store = Store(folder)
    other = store.put(capture(tiny_model("llama", seed=1), tiny_tokenizer(), TEXT))

    async def ask() -> None:
        async with stdio(llama_folder, folder) as client:
            own = (await call(client, "capture", text=TEXT))["digest"]
            good: dict[str, Any] = {"card": own, "prompt": ASK, "max_tokens": 4}

            async def bad(**wrong: Any) -> str:
                return await refused(client, "resume", **{**good, **wrong})

            assert "IdentityError" in await bad(card=other)
            assert "CardNotFoundError" in await bad(card=BAD)
            assert "not the beginning of a digest" in await bad(card="../../etc/passwd")
            assert "not the beginning of a digest" in await bad(card="%")
            assert "ContextLengthExceededError" in await bad(prompt="long " * 60)
            assert "max_tokens" in await bad(max_tokens=0)
            assert "BudgetError" in await bad(keep=True, budget=0.001)
            for budget in (0, -1, "nan", "inf"):
                assert "budget" in await bad(keep=True, budget=budget)
            assert "BudgetError" in await refused(client, "capture", text=TEXT, budget=0.001)
            assert "Error" in await refused(client, "capture", text="")
            assert "agent" in await refused(client, "capture", text=TEXT, agent="a" * 257)
            assert "CardNotFoundError" in await refused(client, "inspect", card=BAD)
            for digest in (BAD, "x", own[:8], "..%2F..%2Fetc%2Fpasswd", "%00", "a/../b"):
                with pytest.raises(MCPError) as raised:
                    await client.read_resource(f"card://{digest}")
                assert raised.value.error.code == -32602
                assert "Traceback" not in str(raised.value)
            await call(client, "resume", **good)
            assert len(store.ls()) == 2

    run(ask())


def test_a_damaged_card_is_refused(llama_folder: Path, folder: Path, session: Session) -> None:
    store = Store(folder)
    digest = str(session.read(TEXT, store, Keep()).card)
    (segment,) = folder.rglob("*.segment")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    # As after a restart: nothing of the card is in memory.
    again = Session(session.model, session.tokenizer)

    async def ask() -> None:
        async with Client(server(again, store)) as client:
            asked = {"card": digest, "prompt": ASK, "max_tokens": 4}
            assert "CardDigestError" in await refused(client, "resume", **asked)
            with pytest.raises(MCPError, match="CardDigestError"):
                await client.read_resource(f"card://{digest}")

    run(ask())


def test_errors_that_nobody_expects_tell_nothing(
    folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "read", lambda *_: 1 / 0)

    async def ask() -> None:
        async with Client(server(session, Store(folder))) as client:
            assert await refused(client, "capture", text=TEXT) == "Error executing tool capture"

    run(ask())


@pytest.mark.slow
@pytest.mark.parametrize("over", ["stdio", "http"])
def test_text_comes_while_it_is_said_until_the_request_is_cancelled(
    folder: Path, tmp_path: Path, over: str
) -> None:
    """The model has one turn at a time, so that what comes after it shows that it has ended."""
    model = tmp_path / "model"
    tiny_model("llama", max_position_embeddings=10**6).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)

    async def ask(client: Client) -> None:
        digest = (await call(client, "capture", text=TEXT))["digest"]
        pieces: list[tuple[float, str]] = []
        begun = asyncio.Event()

        async def note(progress: float, total: float | None, message: str | None) -> None:
            pieces.append((progress, message or ""))
            begun.set()

        asked = {"card": digest, "prompt": ASK, "max_tokens": 100}
        result = await client.call_tool("resume", asked, progress_callback=note)
        said = "".join(piece for _, piece in pieces)
        assert said == result.structured_content["text"]
        assert pieces[-1][0] == len(said)

        begun.clear()
        more = {**asked, "max_tokens": 10**5, "keep": True}
        long = asyncio.create_task(client.call_tool("resume", more, progress_callback=note))
        await begun.wait()
        long.cancel()
        await call(client, "resume", **{**asked, "max_tokens": 4})
        listed = (await call(client, "list_cards"))["result"]
        assert [each["digest"] for each in listed] == [digest]  # the long one kept nothing

    async def ask_over() -> None:
        if over == "stdio":
            async with stdio(model, folder) as client:
                await ask(client)
        else:
            async with http(model, folder) as url, Client(f"{url}/mcp") as client:
                await ask(client)

    run(ask_over())


@pytest.mark.slow
def test_stdout_has_the_protocol_and_nothing_else(llama_folder: Path, folder: Path) -> None:
    about = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "0"},
    }
    messages = [
        {"id": 1, "method": "initialize", "params": about},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list"},
        {
            "id": 3,
            "method": "tools/call",
            "params": {"name": "capture", "arguments": {"text": TEXT}},
        },
    ]
    more = "--big", "1KB", "--link", "http://127.0.0.1:1/v1/cards"
    sent = [json.dumps({"jsonrpc": "2.0", **each}).encode() + b"\n" for each in messages]
    process = subprocess.Popen(
        [sys.executable, *arguments(llama_folder, folder, *more)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"".join([*sent[:2], b"no JSON\n", b"{}\n", *sent[2:]]))
    process.stdin.flush()
    answered: dict[int, Any] = {}
    while 3 not in answered:
        message = json.loads(process.stdout.readline())
        assert message["jsonrpc"] == "2.0"
        if "id" in message and "result" in message:
            answered[message["id"]] = message["result"]
    process.stdin.close()
    assert process.stdout.read() == b""
    assert process.wait() == 0
    assert {tool["name"] for tool in answered[2]["tools"]} == {
        "capture",
        "resume",
        "list_cards",
        "inspect",
    }
    digest = answered[3]["structuredContent"]["digest"]
    assert answered[3]["content"][1]["uri"] == f"{more[-1]}/{digest}"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--http", "0.0.0.0:8000"], "can be reached by others"),
        (["--http", "example.org:8000"], "can be reached by others"),
        (["--http", "127.0.0.1"], "not HOST:PORT"),
        (["--http", "127.0.0.1:0"], "not HOST:PORT"),
        (["--big", "much"], "not a size"),
    ],
)
def test_what_it_is_not_started_with(
    folder: Path, more: list[str], why: str, monkeypatch: Any, capsys: Any
) -> None:
    from qkvshare.cli.main import main

    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["qkvshare", *arguments(Path("none"), folder, *more)[2:]])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code not in (0, None)
    assert why in captured.err
    assert captured.out == ""
