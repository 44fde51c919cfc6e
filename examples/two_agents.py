"""Two agents in two processes, over A2A: one reads, the other goes on from what it has read.

    python examples/two_agents.py

The reader is an A2A agent, served over HTTP. The writer asks it about a manual and gets the answer
as text, with a card beside it: it goes on from the card, and does not read the manual itself. Any
other A2A client gets the text.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import uvicorn

from qkvshare.hf.model.load import load_model
from qkvshare.hf.session.answers import Sampling
from qkvshare.hf.session.session import Session
from qkvshare.serve.a2a import app, ask
from qkvshare.serve.listen import config
from qkvshare.store import Store


def read(folder: Path) -> None:
    """The reader: serves on a free port, and says where."""
    session, speak = Session(*load_model("smollm2-135m")), Sampling(max_tokens=40)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        agent = app(session, Store(folder), base_url=url, name="reader", sampling=speak)
        print(url, flush=True)
        uvicorn.Server(config(agent, "127.0.0.1", 0, "warning")).run([listening])


async def write(url: str, folder: Path) -> None:
    """The writer: the same model, and a store of its own."""
    session, store = Session(*load_model("smollm2-135m")), Store(folder)
    manual = files("qkvshare.cli").joinpath("manual.txt").read_text()
    taken = await ask(url, f"{manual}\n\nWhat is this about?", session=session, store=store)
    print("reader:", taken.text, taken.reason)
    prompt = taken.prompt(session, store, "What is the ink made from?")
    answer = session.answer(prompt, Sampling(max_tokens=32))
    print(f"writer, from a card of {answer.cached_tokens} tokens:", answer.text)


if __name__ == "__main__":
    if sys.argv[1:]:
        read(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, f"{folder}/reader"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
                try:
                    asyncio.run(write(reader.stdout.readline().strip(), Path(folder, "writer")))
                finally:
                    reader.terminate()
