"""Tenants of one store share nothing, and cannot tell what another has."""

from __future__ import annotations

import gc
import random
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest

from qkvshare.card import Key
from qkvshare.card.errors import CardKeyError, CardNotFoundError, StoreError
from qkvshare.store import Store
from tests.cards import IDENTITY, make_card

KEY = Key(b"k" * 32)


@pytest.fixture(params=[None, KEY], ids=["plain", "sealed"])
def key(request: pytest.FixtureRequest) -> Key | None:
    key: Key | None = request.param
    return key


def put_same(root: Path, key: Key | None) -> tuple[Store, Store]:
    """Two tenants who put the same prompt."""
    stores = Store(root, tenant="alice", key=key), Store(root, tenant="bob", key=key)
    for store in stores:
        store.put(make_card().salted(store.salt))
    return stores


def test_tenants_with_the_same_prompt_share_no_digest(tmp_path: Path, key: Key | None) -> None:
    alice, bob = put_same(tmp_path, key)
    seen = []
    for store in (alice, bob):
        (entry,) = store.ls()
        text = store.get(entry.digest).manifest.encode().decode()
        own = text.replace(IDENTITY.weights, "").replace(IDENTITY.config, "")
        own = own.replace(str(IDENTITY.tokenizer), "").replace(str(IDENTITY.chat_template), "")
        names = " ".join(str(path) for path in store.folder.root.rglob("*"))
        rows = " ".join(
            bytes(row["name"]).hex() + bytes(row["block"]).hex()
            for row in store.index.rows("SELECT name, block FROM prefix")
        )
        digests = {entry.digest, *re.findall("[0-9a-f]{64}", f"{own} {names} {rows}")}
        assert len(digests) > 8
        seen.append(digests)
    assert not seen[0] & seen[1]


def test_what_one_has_another_cannot_reach(tmp_path: Path, key: Key | None) -> None:
    alice = Store(tmp_path, tenant="alice", key=key)
    card = make_card().salted(alice.salt)
    digest = alice.put(card)
    bob = Store(tmp_path, tenant="bob", key=key)
    with pytest.raises(CardNotFoundError):
        bob.get(digest)
    with pytest.raises(StoreError, match="another salt"):
        bob.put(card)
    assert bob.match(card.token_ids, IDENTITY) is None
    assert bob.ls() == []


def test_a_tenant_finds_its_cards_again(tmp_path: Path, key: Key | None) -> None:
    put_same(tmp_path, key)[0].close()
    alice = Store(tmp_path, tenant="alice", key=key)
    (entry,) = alice.ls()
    found = alice.match([*make_card().token_ids.tolist(), 9], IDENTITY)
    assert found is not None
    assert found.card == entry.digest
    assert alice.audit().ok


def test_a_card_without_the_tenants_salt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no salt.*salted"):
        Store(tmp_path, tenant="alice").put(make_card())


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "A", "a" * 65, "a\n", "é"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be a tenant's name"):
        Store(tmp_path, tenant=name)


class TestSealed:
    def test_nothing_of_the_prompt_is_on_the_disk(self, tmp_path: Path) -> None:
        store = Store(tmp_path, key=KEY)
        card = make_card(seed=3, runs=(64,)).salted(store.salt)
        store.put(card)
        ids, blob = card.token_ids.tobytes(), card.blob(0, 0)[:64].tobytes()
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            content = path.read_bytes()
            assert ids[:32] not in content, path
            assert blob not in content, path
            assert IDENTITY.weights.encode() not in content, path

    def test_a_wrong_key_opens_nothing(self, tmp_path: Path) -> None:
        digest = Store(tmp_path, key=KEY).put(make_card().salted(KEY.salt()))
        for key in (Key(b"w" * 32), None):
            with pytest.raises(CardKeyError):
                Store(tmp_path, key=key).get(digest)

    def test_a_segment_of_another_tenant_is_no_segment(self, tmp_path: Path) -> None:
        alice, bob = put_same(tmp_path, KEY)
        (mine,), (theirs,) = bob.ls(), alice.ls()
        paths = [
            store.folder.segment_path(store.get(entry.digest).manifest.names[0])
            for store, entry in ((bob, mine), (alice, theirs))
        ]
        paths[0].write_bytes(paths[1].read_bytes())
        assert [*bob.audit().damaged] == [mine.digest]


@pytest.mark.nightly
def test_time_does_not_tell_what_another_tenant_has(tmp_path: Path) -> None:
    """Bob puts and looks up 400 prompts, every other of which Alice has, in random order."""
    chance = random.Random(0)
    alice, bob = Store(tmp_path, tenant="alice"), Store(tmp_path, tenant="bob")
    cards = [make_card(seed=seed, runs=(64, 40)) for seed in range(400)]
    for card in cards[::2]:
        alice.put(card.salted(alice.salt))
    trials = [(at % 2 == 0, card.salted(bob.salt)) for at, card in enumerate(cards)]
    chance.shuffle(trials)
    times: dict[bool, list[float]] = {True: [], False: []}
    gc.disable()
    try:
        for known, card in trials:
            began = time.perf_counter()
            bob.match(card.token_ids, IDENTITY)
            bob.put(card)
            times[known].append(time.perf_counter() - began)
    finally:
        gc.enable()
    # How often a known prompt took longer than an unknown one: 0.5 says nothing; with 200 of each
    # its standard error is 0.03.
    longer = sum(a > b for a in times[True] for b in times[False]) / 200**2
    assert 0.38 < longer < 0.62


def test_two_processes_agree_on_a_new_tenants_salt(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        salts = list(pool.map(lambda _: Store(tmp_path, tenant="new").salt, range(8)))
    assert all(one == other for one, other in pairwise(salts))
    assert salts[0] is not None


def test_many_open_a_new_index_at_once(tmp_path: Path) -> None:
    """Each waits for the others, also while the file is made."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        for number in range(8):
            at = tmp_path / f"{number}"
            for job in [pool.submit(Store, at) for _ in range(16)]:
                job.result()
