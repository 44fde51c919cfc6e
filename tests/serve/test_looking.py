"""Looks at cards take turns and are bounded: answers need the processor, too."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from qkvshare.serve import errors, viewer, viewing
from qkvshare.store import Store

from ..cards import make_card
from .server import serving


def app_of(
    store: Store, tokenizer: Any, arrived: list[str] | None = None, served: list[str] | None = None
) -> FastAPI:
    """The page alone; who asks says which tenant that is. Notes whose views arrive and are made."""

    def store_of(request: Request) -> Store:
        request.state.tenant = request.headers["tenant"]
        if arrived is not None:
            arrived.append(request.state.tenant)
        return store

    def resumes(request: Request) -> list[dict[str, Any]]:
        if served is not None:
            served.append(request.state.tenant)
        return []

    app = FastAPI()
    app.include_router(viewer.router(store_of, tokenizer, resumes))
    errors.install(app, Path("/stores"))
    return app


def test_looks_take_turns(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, tenant by tenant, and no more of a tenant wait than is right."""
    monkeypatch.setattr(viewer, "MOST_WAITING", 4)
    looking, most, go = [], [], threading.Event()

    def slow(_: Store) -> dict[str, Any]:
        looking.append(1)
        most.append(len(looking))
        go.wait(20)
        looking.pop()
        return {}

    monkeypatch.setattr(viewer, "overview", slow)
    arrived, served = list[str](), list[str]()
    with (
        serving(app_of(Store(tmp_path), tokenizer, arrived, served)) as url,
        ThreadPoolExecutor(20) as pool,
    ):

        def look(tenant: str) -> int:
            found = httpx.get(f"{url}/v1/view", headers={"tenant": tenant}, timeout=60)
            return found.status_code

        first = pool.submit(look, "red")
        while not looking:
            time.sleep(0.01)
        red = [pool.submit(look, "red") for _ in range(12)]
        while sum(each.done() for each in red) < 8:  # those that are one too many
            time.sleep(0.01)
        blue = pool.submit(look, "blue")
        while "blue" not in arrived:
            time.sleep(0.01)
        go.set()
        statuses = [each.result() for each in red]
        assert first.result() == blue.result() == 200
    assert sorted(statuses) == [200] * 4 + [429] * 8
    assert max(most) == 1
    assert served.index("blue") <= 2


def test_a_card_that_is_too_long_to_show_is_refused(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million tokens took 38 seconds and more."""
    store = Store(tmp_path)
    digest = store.put(make_card())
    place, headers = f"/v1/view/{digest}", {"tenant": "red"}
    with serving(app_of(store, tokenizer)) as url:
        assert httpx.get(url + place, headers=headers).status_code == 200
        for name in ("MOST_TOKENS", "MOST_BLOBS"):
            with monkeypatch.context() as patched:
                patched.setattr(viewing, name, 3)
                patched.setattr(viewing, "token_bits", None)  # nothing is looked at
                refused = httpx.get(url + place, headers=headers)
            assert refused.status_code == 400
            assert "9 tokens and 4 parts" in refused.json()["error"]["message"]


def test_an_overview_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for seed in range(4):
        store.put(make_card(seed=seed))
    assert viewing.overview(store)["left_out"] == 0
    monkeypatch.setattr(viewing, "OVERVIEW_SECONDS", -1.0)
    found = viewing.overview(store)
    assert (len(found["cards"]), found["left_out"]) == (1, 3)
