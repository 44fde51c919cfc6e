"""Hand-off between two nodes of a LangGraph graph.

qkvshare serve -m smollm2-135m
python examples/langgraph_handoff.py
"""

from __future__ import annotations

import os
from importlib.resources import files
from typing import TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from openai import OpenAI

URL = os.environ.get("QKVSHARE_URL", "http://127.0.0.1:8000/v1")
CLIENT = OpenAI(base_url=URL, api_key=os.environ.get("QKVSHARE_TOKEN", "none"))
MODEL = CLIENT.models.list().data[0].id


class State(TypedDict, total=False):
    """What the nodes hand on."""

    text: str
    question: str
    card: str  # its digest
    answer: str


def read(state: State) -> State:
    """The first agent reads and keeps what it understood. (ChatOpenAI would drop the digest.)"""
    told = CLIENT.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": state["text"]}],
        extra_body={"kv_transfer_params": {"keep": True}, "max_tokens": 8},
    )
    return {"card": told.kv_transfer_params["card"]}


def answer(state: State) -> State:
    """The second agent sees the question only."""
    body = {"kv_transfer_params": {"card": state["card"]}, "temperature": 0, "max_tokens": 24}
    chat = ChatOpenAI(model=MODEL, base_url=URL, api_key=CLIENT.api_key, extra_body=body)
    told = chat.invoke(state["question"])
    print(f"{told.usage_metadata['input_token_details']['cache_read']} tokens from a card")
    return {"answer": str(told.content)}


def main() -> None:
    """Run the graph."""
    graph = StateGraph(State).add_sequence([read, answer]).add_edge(START, "read")
    text = files("qkvshare.cli").joinpath("manual.txt").read_text()
    end = graph.compile().invoke({"text": text, "question": "What is the ink made from?"})
    print(end["answer"])


if __name__ == "__main__":
    main()
