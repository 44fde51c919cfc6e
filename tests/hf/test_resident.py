"""A model in memory: what it says goes on from a card as from the text."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from qkvshare import CacheCard, Raw, capture
from qkvshare.card.errors import CardNotFoundError, IdentityError, PromptError
from qkvshare.hf.answers import Keep, Prompt, Sampling
from qkvshare.hf.chat import Chat
from qkvshare.hf.resident import Resident
from qkvshare.hf.saying import Saying
from qkvshare.store import Store

from ..conftest import greedy_from_text, tiny_model, tiny_tokenizer

READ = [{"role": "user", "content": "The tide is high at noon."}]
ASK = [{"role": "user", "content": "When?"}]
SHORT = Sampling(max_tokens=8)


@pytest.fixture
def resident() -> Resident:
    """One that says printable characters only: tokenized again they are the same ids."""
    model = tiny_model("llama")
    model.generation_config.suppress_tokens = [*range(4), *range(99, 128)]
    return Resident(model, tiny_tokenizer(), codec=Raw())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cards")


def said(resident: Resident, ids: Any, tokens: int = 8) -> str:
    """The reference: all ids in one go."""
    new = greedy_from_text(resident.model, ids.tolist(), tokens)
    return str(resident.tokenizer.decode(new, skip_special_tokens=True))


def test_without_a_card_it_says_what_the_model_says(resident: Resident, store: Store) -> None:
    prompt = resident.prompt(store, READ)
    answer = resident.answer(prompt, SHORT)
    assert answer.text == said(resident, prompt.ids)
    assert (answer.cached_tokens, answer.card) == (0, None)
    assert answer.prompt_tokens == len(prompt.ids)


def test_what_follows_a_card_is_answered_as_the_whole_conversation(
    resident: Resident, store: Store
) -> None:
    first = resident.answer(resident.prompt(store, READ), SHORT, store=store, keep=Keep("a"))
    assert first.card is not None
    prompt = resident.prompt(store, ASK, first.card)
    second = resident.answer(prompt, SHORT)
    whole = resident.chat.whole([*READ, {"role": "assistant", "content": first.text}, *ASK])
    assert prompt.ids.tolist() == whole.tolist()
    assert second.text == said(resident, whole)
    assert second.cached_tokens == store.get(first.card).tokens


def test_a_whole_conversation_goes_on_from_its_card_named_or_not(
    resident: Resident, store: Store
) -> None:
    first = resident.answer(resident.prompt(store, READ), SHORT, store=store, keep=Keep())
    whole = [*READ, {"role": "assistant", "content": first.text}, *ASK]
    named, found = resident.prompt(store, whole, first.card), resident.prompt(store, whole)
    assert named.ids.tolist() == found.ids.tolist()
    answers = [resident.answer(prompt, SHORT) for prompt in (named, found)]
    assert answers[0].text == answers[1].text
    assert answers[0].cached_tokens == answers[1].cached_tokens > 0


def test_a_kept_answer_appends_to_its_card(resident: Resident, store: Store) -> None:
    first = resident.answer(resident.prompt(store, READ), SHORT, store=store, keep=Keep("a"))
    prompt = resident.prompt(store, ASK, first.card)
    second = resident.answer(prompt, SHORT, store=store, keep=Keep("b"))
    parent, child = store.get(str(first.card)), store.get(str(second.card))
    assert child.manifest.names[: len(parent.manifest.names)] == parent.manifest.names
    assert [hop.agent for hop in child.manifest.lineage] == ["a", "b"]
    assert child.manifest.lineage[-1].parent == first.card
    text = resident.tokenizer.decode(child.token_ids)
    assert text.endswith(second.text + "\n")  # the turn is closed


def test_reading_keeps_what_capture_would(resident: Resident, store: Store) -> None:
    kept = resident.read("The tide is high at noon.", store, Keep("a"))
    expected = capture(resident.model, resident.tokenizer, "The tide is high at noon.", codec=Raw())
    card = store.get(str(kept.card))
    assert card.token_ids.tolist() == expected.token_ids.tolist()
    assert card.manifest.segments[0].blobs == expected.manifest.segments[0].blobs


def test_long_prompts_are_read_in_pieces_to_the_same_end(
    resident: Resident, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qkvshare.hf.resident._PIECE", 7)
    prompt = resident.prompt(store, READ)
    assert resident.answer(prompt, SHORT).text == said(resident, prompt.ids)


def test_a_request_that_is_called_off_ends_and_keeps_nothing(
    resident: Resident, store: Store
) -> None:
    asked = iter(range(1000))
    prompt = resident.prompt(store, READ)
    answer = resident.answer(
        prompt,
        Sampling(max_tokens=60),
        store=store,
        keep=Keep(),
        cancelled=lambda: next(asked) > 5,
    )
    assert (answer.finish, answer.card) == ("cancelled", None)
    assert answer.new_tokens < 60
    assert store.ls() == []
    at_once = resident.answer(prompt, SHORT, cancelled=lambda: True)
    assert (at_once.finish, at_once.new_tokens) == ("cancelled", 0)


def test_sampling_follows_its_seed(resident: Resident, store: Store) -> None:
    prompt = resident.prompt(store, READ)
    warm = [
        resident.answer(prompt, Sampling(16, temperature=1.5, seed=seed)).text for seed in (1, 1, 2)
    ]
    assert warm[0] == warm[1] != warm[2]


def test_cards_of_other_models_are_refused(resident: Resident, store: Store) -> None:
    other = capture(tiny_model("llama", seed=1), resident.tokenizer, "hello", codec=Raw())
    with pytest.raises(IdentityError, match="weights"):
        resident.prompt(store, ASK, store.put(other))
    with pytest.raises(CardNotFoundError):
        resident.prompt(store, ASK, "0" * 64)


def test_a_card_under_a_name_is_found_under_that_name_only(
    resident: Resident, store: Store
) -> None:
    apart = store.under("team 1")
    first = resident.answer(resident.prompt(apart, READ), SHORT, store=apart, keep=Keep())
    whole = [*READ, {"role": "assistant", "content": first.text}, *ASK]
    assert resident.prompt(apart, whole).card is not None
    assert resident.prompt(store, whole).card is None
    assert resident.prompt(store.under("team 2"), whole).card is None
    with pytest.raises(IdentityError, match="salt"):
        resident.prompt(store, ASK, first.card)
    assert resident.prompt(apart, ASK, first.card).named


def test_a_damaged_card_is_refused_by_name_and_read_again_otherwise(
    resident: Resident, store: Store
) -> None:
    first = resident.answer(resident.prompt(store, READ), SHORT, store=store, keep=Keep())
    whole = [*READ, {"role": "assistant", "content": first.text}, *ASK]
    expected = resident.answer(resident.prompt(store, whole), SHORT).text
    (segment,) = (store.folder.root / "segments").rglob("*.segment")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    prompt = resident.prompt(store, whole)
    with pytest.warns(UserWarning, match="read again"):
        answer = resident.answer(prompt, SHORT)
    assert (answer.text, answer.cached_tokens) == (expected, 0)
    with pytest.raises(Exception, match="digest"):
        resident.answer(resident.prompt(store, whole, first.card), SHORT)


def test_more_than_the_model_reads_is_refused(resident: Resident, store: Store) -> None:
    with pytest.raises(PromptError, match="256"):
        resident.answer(resident.prompt(store, READ), Sampling(max_tokens=250))


def test_an_empty_prompt_is_refused_and_one_token_is_enough(resident: Resident) -> None:
    ids = resident.tokenizer("a", return_tensors="np")["input_ids"][0]
    with pytest.raises(PromptError, match="empty"):
        resident.answer(Prompt(ids[:0]), SHORT)
    assert resident.answer(Prompt(ids), SHORT).text == said(resident, ids)


def test_requests_of_several_threads_take_turns(resident: Resident, store: Store) -> None:
    prompt = resident.prompt(store, READ)
    expected, found = said(resident, prompt.ids), []

    def ask() -> None:
        found.append(resident.answer(prompt, SHORT).text)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "one two three"),
        (("two",), "one "),
        (("t", "e t"), "on"),
        (("three!",), "one two three"),
    ],
)
def test_stop_strings_end_the_text_and_are_not_in_it(stop: tuple[str, ...], expected: str) -> None:
    pieces: list[str] = []
    saying = Saying(tiny_tokenizer(), pieces.append, stop)
    saying.put(torch.tensor([[1, 2]]))
    for token in tiny_tokenizer()("one two three")["input_ids"]:
        saying.put(torch.tensor([token]))
    saying.end()
    assert "".join(pieces) == saying.text == expected
    assert saying.stopped == (expected != "one two three")


def test_templates_may_drop_what_earlier_turns_thought() -> None:
    """As Qwen3's: the last answer is rendered with its thoughts, earlier ones without."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{% if loop.last and m['role'] == 'assistant' %}"
        "<think></think>{% endif %}{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = Chat(tokenizer)
    assert tokenizer.decode(chat.following(ASK)) == "[user]When?\n[assistant]"
    assert tokenizer.decode(chat.closing) == "\n"


def test_templates_that_cannot_be_continued_say_so() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(PromptError, match="whole conversation"):
        Chat(tokenizer).following(ASK)
    with pytest.raises(PromptError, match="no chat template"):
        Chat(tiny_tokenizer(template=False)).whole(ASK)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="must alternate"):
        Chat(tokenizer).whole(ASK)


def test_a_prompt_may_be_a_card_and_nothing_else(resident: Resident, store: Store) -> None:
    kept = resident.read("The tide is high", store, Keep())
    card: CacheCard = store.get(str(kept.card))
    answer = resident.answer(Prompt(card.token_ids, card), SHORT)
    assert answer.text == said(resident, card.token_ids)
    assert answer.cached_tokens == card.tokens - 1
