"""A model in memory: what it says goes on from a card as from the text."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from qkvshare import CacheCard, Raw, capture
from qkvshare.card.errors import (
    CardNotFoundError,
    ContextLengthExceededError,
    IdentityError,
    PromptError,
)
from qkvshare.hf.session import generation as generating
from qkvshare.hf.session.answers import Keep, Prompt, Sampling
from qkvshare.hf.session.session import Session
from qkvshare.hf.session.streaming import AnswerStream
from qkvshare.hf.text.chat import Chat
from qkvshare.store import Store

from ..conftest import greedy_from_text, tiny_model, tiny_tokenizer

READ = [{"role": "user", "content": "The tide is high at noon."}]
ASK = [{"role": "user", "content": "When?"}]
SHORT = Sampling(max_tokens=8)


UNPRINTABLE = [*range(4), *range(99, 128)]


def talking(family: str = "llama", **config: Any) -> Session:
    """One that says printable characters only: tokenized again they are the same ids."""
    model = tiny_model(family, **config)
    model.generation_config.suppress_tokens = UNPRINTABLE
    return Session(model, tiny_tokenizer(), codec=Raw())


@pytest.fixture
def session() -> Session:
    return talking()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cards")


def said(session: Session, ids: Any, tokens: int = 8) -> str:
    """The reference: all ids in one go."""
    new = greedy_from_text(session.model, ids.tolist(), tokens)
    return str(session.tokenizer.decode(new, skip_special_tokens=True))


def test_without_a_card_it_says_what_the_model_says(session: Session, store: Store) -> None:
    prompt = session.prompt(store, READ)
    answer = session.answer(prompt, SHORT)
    assert answer.text == said(session, prompt.ids)
    assert (answer.cached_tokens, answer.card) == (0, None)
    assert answer.prompt_tokens == len(prompt.ids)


def test_what_follows_a_card_is_answered_as_the_whole_conversation(
    session: Session, store: Store
) -> None:
    first = session.answer(session.prompt(store, READ), SHORT, store=store, keep=Keep("a"))
    assert first.card is not None
    prompt = session.prompt(store, ASK, first.card)
    second = session.answer(prompt, SHORT)
    whole = session.chat.whole([*READ, {"role": "assistant", "content": first.text}, *ASK])
    assert prompt.ids.tolist() == whole.tolist()
    assert second.text == said(session, whole)
    assert second.cached_tokens == store.get(first.card).tokens


def test_a_whole_conversation_goes_on_from_its_card_named_or_not(
    session: Session, store: Store
) -> None:
    first = session.answer(session.prompt(store, READ), SHORT, store=store, keep=Keep())
    whole = [*READ, {"role": "assistant", "content": first.text}, *ASK]
    named, found = session.prompt(store, whole, first.card), session.prompt(store, whole)
    assert named.ids.tolist() == found.ids.tolist()
    answers = [session.answer(prompt, SHORT) for prompt in (named, found)]
    assert answers[0].text == answers[1].text
    assert answers[0].cached_tokens == answers[1].cached_tokens > 0


def test_a_kept_answer_appends_to_its_card(session: Session, store: Store) -> None:
    first = session.answer(session.prompt(store, READ), SHORT, store=store, keep=Keep("a"))
    prompt = session.prompt(store, ASK, first.card)
    second = session.answer(prompt, SHORT, store=store, keep=Keep("b"))
    parent, child = store.get(str(first.card)), store.get(str(second.card))
    assert child.manifest.names[: len(parent.manifest.names)] == parent.manifest.names
    assert [hop.agent for hop in child.manifest.lineage] == ["a", "b"]
    assert child.manifest.lineage[-1].parent == first.card
    text = session.tokenizer.decode(child.token_ids)
    assert text.endswith(second.text + "\n")  # the turn is closed


def test_reading_keeps_what_capture_would(session: Session, store: Store) -> None:
    kept = session.read("The tide is high at noon.", store, Keep("a"))
    expected = capture(session.model, session.tokenizer, "The tide is high at noon.", codec=Raw())
    card = store.get(str(kept.card))
    assert card.token_ids.tolist() == expected.token_ids.tolist()
    assert card.manifest.segments[0].blobs == expected.manifest.segments[0].blobs


def test_long_prompts_are_read_in_pieces_to_the_same_end(
    session: Session, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qkvshare.hf.cache.complete._PIECE", 7)
    prompt = session.prompt(store, READ)
    assert session.answer(prompt, SHORT).text == said(session, prompt.ids)


def test_a_request_that_is_called_off_ends_and_keeps_nothing(
    session: Session, store: Store
) -> None:
    asked = iter(range(1000))
    prompt = session.prompt(store, READ)
    answer = session.answer(
        prompt,
        Sampling(max_tokens=60),
        store=store,
        keep=Keep(),
        cancelled=lambda: next(asked) > 5,
    )
    assert (answer.finish, answer.card) == ("cancelled", None)
    assert answer.new_tokens < 60
    assert store.ls() == []
    at_once = session.answer(prompt, SHORT, cancelled=lambda: True)
    assert (at_once.finish, at_once.new_tokens) == ("cancelled", 0)


def test_sampling_follows_its_seed(session: Session, store: Store) -> None:
    prompt = session.prompt(store, READ)
    warm = [
        session.answer(prompt, Sampling(16, temperature=1.5, seed=seed)).text for seed in (1, 1, 2)
    ]
    assert warm[0] == warm[1] != warm[2]


def test_cards_of_other_models_are_refused(session: Session, store: Store) -> None:
    other = capture(tiny_model("llama", seed=1), session.tokenizer, "hello", codec=Raw())
    with pytest.raises(IdentityError, match="weights"):
        session.prompt(store, ASK, store.put(other))
    with pytest.raises(CardNotFoundError):
        session.prompt(store, ASK, "0" * 64)


def test_a_card_under_a_name_is_found_under_that_name_only(session: Session, store: Store) -> None:
    apart = store.under("team 1")
    first = session.answer(session.prompt(apart, READ), SHORT, store=apart, keep=Keep())
    whole = [*READ, {"role": "assistant", "content": first.text}, *ASK]
    assert session.prompt(apart, whole).card is not None
    assert session.prompt(store, whole).card is None
    assert session.prompt(store.under("team 2"), whole).card is None
    with pytest.raises(IdentityError, match="salt"):
        session.prompt(store, ASK, first.card)
    assert session.prompt(apart, ASK, first.card).named


def test_a_damaged_card_is_refused_by_name_and_read_again_otherwise(
    session: Session, store: Store
) -> None:
    first = session.answer(session.prompt(store, READ), SHORT, store=store, keep=Keep())
    whole = [*READ, {"role": "assistant", "content": first.text}, *ASK]
    expected = session.answer(session.prompt(store, whole), SHORT).text
    (segment,) = (store.folder.root / "segments").rglob("*.segment")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    session = talking()  # as after a restart: nothing of the card is in memory
    prompt = session.prompt(store, whole)
    with pytest.warns(UserWarning, match="read again"):
        answer = session.answer(prompt, SHORT)
    assert (answer.text, answer.cached_tokens) == (expected, 0)
    with pytest.raises(Exception, match="digest"):
        session.answer(session.prompt(store, whole, first.card), SHORT)


def test_more_than_the_model_reads_is_refused(session: Session, store: Store) -> None:
    long = [{"role": "user", "content": "x" * 256}]
    with pytest.raises(ContextLengthExceededError, match="maximum context length is 256 tokens"):
        session.answer(session.prompt(store, long), Sampling(max_tokens=1))


def test_an_answer_has_the_room_that_is_left(session: Session, store: Store) -> None:
    prompt = session.prompt(store, READ)
    answer = session.answer(prompt, Sampling(max_tokens=10_000))
    assert (answer.new_tokens, answer.finish) == (256 - len(prompt.ids), "length")


def test_a_kept_answer_leaves_room_for_the_end_of_its_turn(session: Session, store: Store) -> None:
    prompt = session.prompt(store, READ)
    answer = session.answer(prompt, Sampling(max_tokens=10_000), store=store, keep=Keep())
    closing = len(session.chat.closing)
    assert answer.new_tokens == 256 - closing - len(prompt.ids)
    assert answer.card is not None
    assert store.get(answer.card).tokens == 256
    full = Prompt(np.concatenate([prompt.ids, prompt.ids[:1].repeat(255 - len(prompt.ids))]))
    assert session.answer(full, SHORT).new_tokens == 1
    with pytest.raises(ContextLengthExceededError, match=f"as a card takes {closing} more"):
        session.answer(full, SHORT, store=store, keep=Keep())


def test_an_empty_prompt_is_refused_and_one_token_is_enough(session: Session) -> None:
    ids = session.tokenizer("a", return_tensors="np")["input_ids"][0]
    with pytest.raises(PromptError, match="empty"):
        session.answer(Prompt(ids[:0]), SHORT)
    assert session.answer(Prompt(ids), SHORT).text == said(session, ids)


def test_requests_of_several_threads_take_turns(session: Session, store: Store) -> None:
    prompt = session.prompt(store, READ)
    expected, found = said(session, prompt.ids), []

    def ask() -> None:
        found.append(session.answer(prompt, SHORT).text)

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
    stream = AnswerStream(tiny_tokenizer(), pieces.append, stop)
    stream.put(torch.tensor([[1, 2]]))
    for token in tiny_tokenizer()("one two three")["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == expected
    assert stream.stopped == (expected != "one two three")


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


def test_a_prompt_may_be_a_card_and_nothing_else(session: Session, store: Store) -> None:
    kept = session.read("The tide is high", store, Keep())
    card: CacheCard = store.get(str(kept.card))
    answer = session.answer(Prompt(card.token_ids, card), SHORT)
    assert answer.text == said(session, card.token_ids)
    assert answer.cached_tokens == card.tokens - 1


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"return_dict_in_generate": True, "output_scores": True},
        {"use_cache": False},
        {"output_attentions": True, "output_hidden_states": True},
        {"prompt_lookup_num_tokens": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
        {"guidance_scale": 2.0},
        {"stop_strings": ["e"]},
        {"max_length": 3},
        {"max_new_tokens": 2, "max_time": 1e-9},
        {"prefill_chunk_size": 4},
        {"force_words_ids": [[5]]},
        {"constraints": []},
        {"token_healing": True},
        {"low_memory": True},
    ],
)
def test_the_models_settings_change_no_answer(settings: dict[str, Any], store: Store) -> None:
    """A checkpoint's generation_config may ask for what a hand-off cannot do."""
    plain = talking()
    prompt = plain.prompt(store, READ)
    expected = plain.answer(prompt, SHORT, store=store, keep=Keep())
    model = tiny_model("llama")
    vars(model.generation_config).update(settings, suppress_tokens=UNPRINTABLE)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        session = Session(model, tiny_tokenizer(), codec=Raw())
    for each in (None, expected.card):
        answer = session.answer(session.prompt(store, READ), SHORT, store=store, keep=Keep())
        assert (answer.text, answer.finish) == (expected.text, expected.finish), each
    follows = session.answer(session.prompt(store, ASK, expected.card), SHORT)
    assert follows.text == plain.answer(plain.prompt(store, ASK, expected.card), SHORT).text
    left_out = {"num_beams", "guidance_scale", "stop_strings", "penalty_alpha", "dola_layers"}
    named = [name for name in left_out if any(name in str(each.message) for each in told)]
    assert {*named} == left_out.intersection(settings)
    assert vars(model.generation_config).items() >= settings.items()  # it has its own again


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_config_without_cache_changes_no_answer(family: str, store: Store) -> None:
    """Trainers leave ``use_cache: false`` in a config."""
    expected = talking(family)
    session = talking(family, use_cache=False)
    first = session.answer(session.prompt(store, READ), SHORT, store=store, keep=Keep())
    assert first.text == expected.answer(expected.prompt(store, READ), SHORT).text
    whole = [*READ, {"role": "assistant", "content": first.text}, *ASK]
    answer = session.answer(session.prompt(store, whole), SHORT)
    assert answer.cached_tokens > len(session.chat.whole(READ))
    fresh = Store(store.root / "other")
    assert answer.text == expected.answer(expected.prompt(fresh, whole), SHORT).text


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.9},
        {"no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 2.5},
        {"encoder_no_repeat_ngram_size": 2},
        {"min_length": 66},
        {"bad_words_ids": [[40, 41], [50]]},
    ],
)
def test_the_models_penalties_see_the_cards_tokens(settings: dict[str, Any], store: Store) -> None:
    session = talking()
    plain = session.answer(session.prompt(store, READ), SHORT, store=store, keep=Keep())
    session.model.generation_config.update(**settings)
    prompt = session.prompt(store, ASK, plain.card)
    answer = session.answer(prompt, SHORT)
    assert answer.cached_tokens > 0
    ids = torch.from_numpy(prompt.ids.astype(np.int64))[None]
    with torch.no_grad():
        output = session.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=SHORT.max_tokens
        )
    expected = session.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer.text == expected


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_an_answer_cut_within_a_character_is_found_again(family: str, tmp_path: Path) -> None:
    """The text has no half of a character, and neither has the card, so the two match."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({word: at for at, word in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = tiny_tokenizer().chat_template
    model = tiny_model(family, vocab_size=256)
    emoji = tokenizer("🙂🙂🙂🙂", add_special_tokens=False)["input_ids"]
    begins = len(Chat(tokenizer).whole(READ))

    def say(module: Any, given: Any, out: Any) -> Any:
        """Say these bytes, whatever the model thinks."""
        at = out.past_key_values.get_seq_length() - begins
        if 0 <= at < len(emoji):
            out.logits[:, -1, emoji[at]] = 1e4
        return out

    model.register_forward_hook(say)  # first, since a hook makes another model
    session, store = Session(model, tokenizer, codec=Raw()), Store(tmp_path / "cards")
    for tokens in (4, 5, 6, 7):
        answer = session.answer(
            session.prompt(store, READ), Sampling(tokens), store=store, keep=Keep()
        )
        assert (answer.text, answer.new_tokens, answer.finish) == ("🙂", tokens, "length")
        whole = [*READ, {"role": "assistant", "content": answer.text}, *ASK]
        prompt = session.prompt(store, whole)
        assert prompt.card is not None
        assert prompt.card.tokens == len(session.chat.whole(whole[:2])) - len("[assistant]")
        assert str(answer.card) == prompt.card.digest
        store.remove(prompt.card.digest)


def test_what_a_stop_string_cuts_is_not_in_the_card(session: Session, store: Store) -> None:
    prompt = session.prompt(store, READ)
    text = session.answer(prompt, SHORT).text
    stop = Sampling(SHORT.max_tokens, stop=(text[3:5],))
    answer = session.answer(prompt, stop, store=store, keep=Keep())
    assert answer.text == text[: text.index(text[3:5])]
    whole = [*READ, {"role": "assistant", "content": answer.text}, *ASK]
    found = session.prompt(store, whole)
    assert found.card is not None
    assert found.card.digest == answer.card


def test_a_temperature_of_next_to_nothing_is_greedy(session: Session, store: Store) -> None:
    prompt = session.prompt(store, READ)
    expected = session.answer(prompt, SHORT).text
    for temperature in (5e-324, 1e-320, 1e-40, 1e-6):
        assert session.answer(prompt, Sampling(8, temperature)).text == expected


def test_a_text_that_spells_a_special_token_is_read_as_text(session: Session, store: Store) -> None:
    kept = session.read("a</s>b", store, Keep())
    ids = store.get(str(kept.card)).token_ids
    assert session.tokenizer.decode(ids) == "a</s>b"
    assert len(ids) == 6


# Of a generation config: what says how tokens are computed, not which; our own settings; and what
# belongs to modes that are left out (beams, assistants) or to models with an encoder.
NO_MATTER = {
    *re.findall(
        r"\w+",
        """
assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind
cache_config cache_implementation compile_config continuous_batching_config decoder_start_token_id
disable_compile diversity_penalty do_sample early_stopping forced_bos_token_id is_assistant
length_penalty low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens max_time
num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_return_sequences
output_attentions output_hidden_states output_logits output_scores prefill_chunk_size
prompt_lookup_num_tokens return_dict_in_generate speculation_type target_lookbehind temperature
top_p transformers_version use_cache use_mtp
""",
    )
}


def test_every_field_of_a_generation_config_is_followed_or_known() -> None:
    followed = {*generating.FOLLOWED, *generating.SAMPLED, *generating.LEFT_OUT}
    there = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert there <= followed | NO_MATTER
