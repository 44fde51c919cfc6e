"""The page in a browser: what it shows, to whom, and that it can be used without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import qkvshare
from qkvshare.card import CacheCard, Hop, Layer
from qkvshare.codecs import LayerKV, Packed
from qkvshare.codecs.stats import token_bits
from qkvshare.hf.model.identity import tokenizer_digest
from qkvshare.store import Store

httpx = pytest.importorskip("httpx")
fastapi = pytest.importorskip("fastapi", reason="the page needs 'qkvshare[serve]'")

from qkvshare.serve import errors  # noqa: E402
from qkvshare.serve.viewer import router  # noqa: E402

from ..cards import IDENTITY, card_of, encode, make_card  # noqa: E402
from .browser import Watched, chromium  # noqa: E402
from .server import serving  # noqa: E402

MANUAL = (
    "The ink is made from walnut shells.\n\n"
    "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">\n"
    "Never force a twelfth turn."
)
SECRET = "The access code of Bob is 4821."


@dataclass(frozen=True)
class Site:
    """A server with two tenants' stores, open to their bearer tokens."""

    url: str
    alice: Store
    bob: Store
    resumes: list[dict[str, Any]]


def app_of(store_of: Any, tokenizer: Any, resumes: list[dict[str, Any]]) -> Any:
    """The page alone, with errors answered as the server does."""
    app = fastapi.FastAPI()
    app.include_router(router(store_of, tokenizer, lambda _: resumes))
    errors.install(app, Path("/stores"))
    return app


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def site(llama: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("store")
    alice, bob = Store(root, tenant="alice"), Store(root, tenant="bob")
    read = qkvshare.capture(
        llama, tokenizer, MANUAL, bits=7.0, agent="reader", codec=Packed(), salt=alice.salt
    )
    alice.put(read)
    alice.put(read.fork("writer"))
    alice.put(read.fork("removed").fork("critic"))
    bob.put(qkvshare.capture(llama, tokenizer, SECRET, bits=40.0, salt=bob.salt))
    stores = {"Bearer alice's": alice, "Bearer bob's": bob}
    resumes = [
        {
            "time": 1.8e9,
            "parts": [{"card": read.digest, "tokens": 120}, {"card": None, "tokens": 7}],
            "composed": False,
            "ttft_ms": 100.0,
            "stages_ms": {"inject": 20.0, "read": 50.0, "say": 90.0, "first": 100.0, "keep": 5.0},
        },
        {
            "time": 1.8e9,
            "parts": [
                {"card": None, "tokens": 1},
                {"card": read.digest, "tokens": 90},
                {"card": "9" * 64, "tokens": 30},
            ],
            "composed": True,
            "ttft_ms": 50.0,
            "stages_ms": {"inject": 40.0, "read": 0.0, "say": 90.0, "first": 50.0},
        },
    ]

    def store_of(request: fastapi.Request) -> Store:
        store = stores.get(request.headers.get("authorization", ""))
        if store is None:
            raise fastapi.HTTPException(401)
        return store

    with serving(app_of(store_of, tokenizer, resumes)) as url:
        yield Site(url, alice, bob, resumes)


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A page that has shown Alice her cards; nothing may have been asked for elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(site.url)
    enter(page, "alice's")
    watched = Watched(page)
    yield page
    assert watched.errors == []
    assert all(url.startswith(site.url) for url in watched.asked)
    context.close()


def enter(page: Any, token: str) -> None:
    page.get_by_label("This server shows cards").fill(token)
    page.get_by_role("button", name="Show").click()
    page.get_by_role("region", name="Cards").wait_for()


def digest_of(store: Store, agent: str) -> str:
    return next(entry.digest for entry in store.ls() if entry.agent == agent)


def open_card(page: Any, agent: str = "reader") -> Any:
    """Its text."""
    page.get_by_role("region", name="Cards").get_by_role("link", name=agent).click()
    text = page.locator(".text")
    text.wait_for()
    return text


def test_cards_are_listed(page: Any, site: Site) -> None:
    table = page.get_by_role("region", name="Cards")
    assert sorted(table.get_by_role("link").all_text_contents()) == ["critic", "reader", "writer"]
    entry = next(entry for entry in site.alice.ls() if entry.agent == "reader")
    row = table.get_by_role("row", name="reader")
    cells = row.get_by_role("cell").all_text_contents()
    card = site.alice.folder.open_card(entry.digest)
    assert cells[:3] == [entry.digest[:8], str(entry.tokens), f"{card.bits_per_value:.2f}"]


def test_lineage_is_drawn_with_what_is_gone(page: Any) -> None:
    """reader, under it writer, and critic under one who is not there any more."""
    lineage = page.get_by_role("region", name="Lineage")
    boxes = lineage.get_by_role("link")
    assert boxes.locator("b").all_text_contents() == ["reader", "writer", "removed", "critic"]
    left, top = zip(
        *((box["x"], box["y"]) for box in (one.bounding_box() for one in boxes.all())), strict=True
    )
    assert left[0] < left[1] == left[2] < left[3]
    assert top[0] == top[1] < top[2] == top[3]
    assert boxes.nth(2).get_attribute("aria-disabled") == "true"
    assert lineage.locator("path").count() == 3


def test_last_resumes_are_shown(page: Any) -> None:
    resumes = page.get_by_role("region", name="Last resumes").get_by_role("listitem")
    assert resumes.count() == 2
    composed = resumes.nth(1).inner_text()
    assert "1 token read + reader 90 + 99999999 30 (composed)" in composed
    said = resumes.first.inner_text()
    for part in ("100 ms", "reader 120 + 7 tokens read", "inject 20 ms", "first token 30 ms"):
        assert part in said
    assert "say" not in said  # it is later than the first token
    assert "keep" not in said


def test_text_is_the_cards_and_stays_text(page: Any, site: Site, tokenizer: Any) -> None:
    card = site.alice.folder.open_card(digest_of(site.alice, "reader"))
    text = open_card(page)
    assert text.evaluate("e => e.textContent") == tokenizer.decode(card.token_ids)
    assert text.evaluate("e => e.textContent") == MANUAL
    assert text.locator("span").count() == card.tokens
    assert text.locator("img, script").count() == 0
    assert page.title() == "reader – QKVShare"


def test_shades_follow_the_bits(page: Any, site: Site) -> None:
    bits = token_bits(site.alice.folder.open_card(digest_of(site.alice, "reader")))
    assert bits is not None
    for choice, each in (
        ("all", bits.keys + bits.values),
        ("keys", bits.keys),
        ("values", bits.values),
    ):
        if choice == "all":
            text = open_card(page)
        page.get_by_label("Shaded by bits of").select_option(choice)
        levels = np.array(
            text.evaluate("e => [...e.querySelectorAll('span')].map(s => +s.className[1])")
        )
        assert len(set(levels)) > 2
        mean = each.mean(0).round(3)
        order = np.argsort(mean, kind="stable")
        assert (np.diff(levels[order]) >= 0).all()
        colors = text.evaluate(
            "e => [...e.querySelectorAll('span')].map(s => getComputedStyle(s).backgroundColor)"
        )
        assert colors[order[0]] != colors[order[-1]]


def test_pointing_at_a_token_tells_of_it(page: Any, site: Site) -> None:
    bits = token_bits(site.alice.folder.open_card(digest_of(site.alice, "reader")))
    assert bits is not None
    text = open_card(page)
    text.locator("span").nth(4).hover()
    token = page.get_by_role("region", name="Token")
    token.get_by_text("4 of ").wait_for()
    said = token.inner_text()
    assert "\ni\n" in said
    assert f"{bits.keys[:, 4].mean():.2f}, {bits.values[:, 4].mean():.2f}" in said
    before = page.locator(".layers .token").first.get_attribute("d")
    text.locator("span").nth(0).hover()
    token.get_by_text("0 of ").wait_for()
    assert page.locator(".layers .token").first.get_attribute("d") != before


def test_everything_works_by_keyboard(page: Any, site: Site) -> None:
    lineage = page.get_by_role("region", name="Lineage")
    table = page.get_by_role("region", name="Cards")
    focused = page.locator(":focus")
    page.keyboard.press("Tab")
    assert focused.get_attribute("aria-label").startswith("reader")
    page.keyboard.press("ArrowRight")
    assert focused.locator("b").inner_text() == "writer"
    page.keyboard.press("ArrowDown")
    assert focused.locator("b").inner_text() == "removed"
    page.keyboard.press("Enter")  # it cannot be opened
    assert page.url.rstrip("#").rstrip("/") == site.url
    page.keyboard.press("ArrowLeft")
    assert focused.locator("b").inner_text() == "reader"
    assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    assert lineage.locator(":focus").count() == 1
    page.keyboard.press("Tab")  # one stop for all of them
    assert table.locator(":focus").count() == 1
    page.keyboard.press("End")
    last = focused.inner_text()
    assert last == table.get_by_role("link").last.inner_text()
    page.keyboard.press("Enter")
    text = page.locator(".text")
    text.wait_for()
    assert text.evaluate("e => e === document.activeElement")

    live = page.locator("[aria-live=polite]")
    for key, at in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        page.keyboard.press(key)
        live.get_by_text(f"Token {at}:").wait_for()
    assert "bits, keys" in live.inner_text()
    page.keyboard.press("End")
    live.get_by_text(f"Token {len(MANUAL) - 1}:").wait_for()
    page.keyboard.press("ArrowUp")
    page.wait_for_function("!document.getElementById('say').textContent.includes('twelfth')")
    page.keyboard.press("Escape")
    table.wait_for()
    assert table.locator(":focus").inner_text() == last


def test_arrows_up_and_down_keep_to_the_column(page: Any) -> None:
    text = open_card(page)
    text.press("Home")
    for _ in range(4):
        text.press("ArrowRight")
    start = text.locator(".now").bounding_box()
    text.press("ArrowDown")
    text.press("ArrowDown")
    below = text.locator(".now").bounding_box()
    assert below["y"] > start["y"]
    assert abs(below["x"] - start["x"]) < 2 * start["width"]
    text.press("ArrowUp")
    text.press("ArrowUp")
    assert text.locator(".now").bounding_box() == start


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_shade(page: Any, scheme: str) -> None:
    """WCAG 2.1 asks for a contrast of 4.5."""
    page.emulate_media(color_scheme=scheme)
    open_card(page)
    colors = page.evaluate(
        """() => {
        const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        const seen = (...layers) => {
          for (const color of layers) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
          return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const text = document.querySelector(".text"), span = text.querySelector("span");
        const ground = getComputedStyle(text).backgroundColor;
        const ink = seen(getComputedStyle(span).color);
        return Array.from({ length: 10 }, (_, level) => {
          span.className = `l${level}`;
          return [ink, seen(ground, getComputedStyle(span).backgroundColor)];
        });
      }"""
    )
    grounds = {tuple(ground) for _, ground in colors}
    assert len(grounds) == 10
    for ink, ground in colors:
        light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5
    assert (luminance(colors[0][1]) < 0.2) == (scheme == "dark")


def luminance(color: list[int]) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (part / 255 for part in color)
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_of_the_card_all_is_told(page: Any, site: Site) -> None:
    card = site.alice.folder.open_card(digest_of(site.alice, "critic"))
    open_card(page, "critic")
    for region, parts in {
        "Bytes by kind": [f"{card.header_bytes:,}", "codes", card.digest, "none"],
        "Lineage": ["reader", "read from scratch", "removed", "critic"],
        "Segments": ["packed", "lagrangian"],
        "Identity": [card.manifest.identity.weights, "float32", "salted"],
        "Bits per layer": ["as numbers"],
    }.items():
        said = page.get_by_role("region", name=region).inner_text()
        for part in parts:
            assert part in said, region
    page.get_by_text("as numbers").click()
    rows = page.get_by_role("region", name="Bits per layer").locator("tbody tr")
    # The browser tells the page that the table was opened after the click has returned.
    rows.nth(2).wait_for()
    assert rows.count() == 3
    assert rows.first.locator("td").last.inner_text() != ""


def test_only_who_has_the_token_sees_a_card(browser: Any, site: Site) -> None:
    """A wrong token is asked for again; another tenant's card is not there."""
    page = browser.new_page()
    page.goto(site.url)
    page.get_by_label("This server shows cards").fill("nobody's")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("does not know this token").wait_for()
    enter(page, "bob's")
    assert page.get_by_role("region", name="Cards").get_by_role("link").count() == 1
    page.evaluate(f"location.hash = '{digest_of(site.alice, 'reader')}'")
    page.get_by_role("alert").get_by_text("no card begins with").wait_for()
    assert "walnut" not in page.content()
    page.keyboard.press("Escape")
    page.get_by_role("region", name="Cards").get_by_role("link").click()
    page.locator(".text").wait_for()
    assert page.locator(".text").evaluate("e => e.textContent") == SECRET
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    page.close()


def test_the_page_itself_tells_nothing_and_loads_nothing(site: Site) -> None:
    for path in ("/", "/page/viewer.js", "/page/viewer.css"):
        answer = httpx.get(site.url + path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    for path in ("/v1/view", f"/v1/view/{digest_of(site.alice, 'reader')}"):
        assert httpx.get(site.url + path).status_code == 401
    bob = {"Authorization": "Bearer bob's"}
    answer = httpx.get(f"{site.url}/v1/view/{digest_of(site.alice, 'reader')}", headers=bob)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "card_not_found"
    for name in ("..%2Fviewer.py", "viewer.py", "%2e%2e/app.py"):
        assert httpx.get(f"{site.url}/page/{name}").status_code == 404


def test_a_store_of_other_models_cards_and_damaged_ones(
    browser: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Ids without a text, a card that cannot be read, and an ancestor said to be its own."""
    store = Store(tmp_path)
    other, bad, circle = make_card(), make_card(seed=1), make_card(seed=2)
    hops = [Hop(hop=at, agent="own parent", tokens_added=4, parent="a" * 64) for at in (0, 1)]
    manifest = msgspec.structs.replace(circle.manifest, lineage=hops)
    for card in (other, bad, CacheCard(manifest, circle.tensors)):
        store.put(card)
    path = store.folder.card_path(bad.digest)
    path.write_bytes(path.read_bytes()[:-3])
    with serving(app_of(lambda _: store, tokenizer, [])) as url:
        page = browser.new_page()
        watched = Watched(page)
        page.goto(url)
        cards = page.get_by_role("region", name="Cards").get_by_role("row")
        cards.get_by_text("the file").or_(cards.get_by_text("damaged")).first.wait_for()
        assert page.get_by_role("region", name="Lineage").get_by_role("link").count() == 4
        page.evaluate(f"location.hash = '{other.digest}'")
        page.locator(".text").wait_for()
        assert page.locator(".text").evaluate("e => e.textContent").startswith("⟨0⟩ ⟨1⟩ ")
        page.get_by_text("Another tokenizer made these ids").wait_for()
        page.close()
    assert watched.errors == []
    assert all(address.startswith(url) for address in watched.asked)


def test_a_card_of_states_alone(browser: Any, tokenizer: Any, tmp_path: Path) -> None:
    """It has no bits per value, and none of a token."""
    store = Store(tmp_path)
    card = make_card(states=True, geometry=[])
    store.put(card)
    store.put(make_card(seed=1))
    with serving(app_of(lambda _: store, tokenizer, [])) as url:
        page = browser.new_page()
        watched = Watched(page)
        page.goto(url)
        row = page.get_by_role("row").filter(has_text=card.digest[:8])
        row.wait_for()
        assert row.locator("td.number").nth(1).inner_text().strip() == "—"
        page.evaluate(f"location.hash = '{card.digest}'")
        page.get_by_text("States alone, and no bits of a token").wait_for()
        page.get_by_text("none with keys and values").wait_for()
        assert page.get_by_text("bits per value").count() == 0
        page.close()
    assert watched.errors == []


def test_where_there_is_no_browser_the_tests_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(pytest.skip.Exception, match="apt install chromium"), chromium():
        pass


TOKENS, LAYERS = 8000, 30


def long_card(tokenizer: Any) -> CacheCard:
    """Numbers at random, and widths that change from row to row."""
    text = "".join(f"Line {n}: the quick brown fox jumps.\n" for n in range(300))[:TOKENS]
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    codec, draw = Packed(), torch.Generator().manual_seed(0)
    layers = [LayerKV(*torch.randn(2, 1, TOKENS, 8, generator=draw)) for _ in range(LAYERS)]
    blobs = encode(codec, layers)
    identity = msgspec.structs.replace(IDENTITY, tokenizer=tokenizer_digest(tokenizer))
    return card_of(ids, blobs, codec, [Layer("full", 1, 8, 8)] * LAYERS, identity)


def test_eight_thousand_tokens_are_no_burden(browser: Any, tokenizer: Any, tmp_path: Path) -> None:
    """What is far away is not laid out, and no token has a listener of its own."""
    store = Store(tmp_path)
    digest = store.put(long_card(tokenizer))
    with serving(app_of(lambda _: store, tokenizer, [])) as url:
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(url)
        assert len(httpx.get(f"{url}/v1/view/{digest}").content) < 1_200_000
        text = open_card(page, "test")
        assert text.locator("span").count() == TOKENS
        assert page.locator(".card *").count() < TOKENS + 1000
        hidden = text.evaluate(
            "e => [...e.children].filter(c => !c.checkVisibility({contentVisibilityAuto: true})"
            " || !c.firstChild.checkVisibility({contentVisibilityAuto: true})).length"
        )
        assert hidden > 10
        text.press("End")
        page.locator("[aria-live=polite]").get_by_text(f"Token {TOKENS - 1}:").wait_for()
        assert text.locator(".now").evaluate(
            "e => e.checkVisibility({contentVisibilityAuto: true})"
        )
        # However many keys come within a frame, it is drawn once.
        changed = text.evaluate(
            """async (text) => {
            const key = () => new KeyboardEvent("keydown", { key: "ArrowLeft" });
            const details = document.querySelector("div.token");
            let drawn = 0;
            new MutationObserver(() => (drawn += 1)).observe(details, { childList: true });
            for (let n = 0; n < 100; n += 1) text.dispatchEvent(key());
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            return [drawn, document.querySelector(".now").at];
          }"""
        )
        assert changed == [1, TOKENS - 101]
        page.close()
