"""Every request field of a chat completion in OpenAI's or vLLM's API, and how we treat it.

The schema applies this table, and docs/serve.md shows it. A field that would change the answer is
done or refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import msgspec

from ..card.errors import UnsupportedParameterError

Status = Literal["done", "ignored", "refused"]


@dataclass(frozen=True)
class Rule:
    """How a field is treated.

    Attributes:
        status: ``ignored`` fields change no answer.
        meaning: what the field does, or what it is for.
        neutral: values of a refused field that ask for nothing, and so are allowed.
    """

    status: Status
    meaning: str
    neutral: tuple[Any, ...] = ()


_done, _ignored = partial(Rule, "done"), partial(Rule, "ignored")


def _refused(meaning: str, *neutral: Any) -> Rule:
    return Rule("refused", meaning, neutral)


OPENAI = {
    "messages": _done("the conversation, or what follows a card"),
    "model": _done("the served model's name"),
    "max_tokens": _done("the most tokens of an answer; cut to what is left of the context"),
    "max_completion_tokens": _done("its newer name"),
    "temperature": _done("0 is greedy"),
    "top_p": _done("sample from the likeliest tokens of this total probability"),
    "seed": _done("makes the answer repeatable"),
    "stop": _done("strings that end the answer"),
    "stream": _done("send the answer while it is generated"),
    "stream_options": _done("`include_usage`"),
    "audio": _refused("spoken answers"),
    "frequency_penalty": _refused("a penalty on frequent tokens", 0),
    "function_call": _refused("tools, by their old name", "none", "auto"),
    "functions": _refused("tools, by their old name", []),
    "logit_bias": _refused("a bias on tokens", {}),
    "logprobs": _refused("log probabilities", False),
    "metadata": _ignored("the client's notes"),
    "modalities": _refused("answers other than text", ["text"]),
    "moderation": _refused("moderation of the answer"),
    "n": _refused("several answers", 1),
    "parallel_tool_calls": _done("false ends the answer after one call"),
    "prediction": _ignored("a guess of the answer, to save time"),
    "presence_penalty": _refused("a penalty on tokens that came before", 0),
    "prompt_cache_key": _ignored("about the provider's cache"),
    "prompt_cache_options": _ignored("about the provider's cache"),
    "prompt_cache_retention": _ignored("about the provider's cache"),
    "reasoning_effort": _refused("how long to reason"),
    "response_format": _refused("structured answers", {"type": "text"}),
    "safety_identifier": _ignored("who the user is"),
    "service_tier": _ignored("about the provider's prices"),
    "store": _ignored("keep the answer at the provider"),
    "tool_choice": _done("`auto`, or `none`, which leaves the tools out; others are refused"),
    "tools": _done("functions that the model may call; the chat template must take them"),
    "top_logprobs": _refused("log probabilities", 0),
    "user": _ignored("who the user is"),
    "verbosity": _refused("how long the answer is", "medium"),
    "web_search_options": _refused("search"),
}
VLLM = {
    "cache_salt": _done("keep and match cards separately"),
    "kv_transfer_params": _done("the hand-off"),
    "min_p": _done("drop tokens less likely than this share of the likeliest one"),
    "repetition_penalty": _done("a penalty on tokens of prompt and answer"),
    "top_k": _done("how many of the likeliest tokens to sample from; 0 and -1 mean all"),
    "add_generation_prompt": _refused("leave out the prompt for the answer", True),
    "add_special_tokens": _refused("special tokens besides the template's", False),
    "allowed_token_ids": _refused("allow only these tokens"),
    "bad_words": _refused("forbid these words", []),
    "best_of": _refused("the best of several answers", 1),
    "chat_template": _refused("another template"),
    "chat_template_kwargs": _refused("settings of the template", {}),
    "continue_final_message": _refused("continue the last message", False),
    "documents": _refused("documents for the template", []),
    "echo": _refused("repeat the last message", False),
    "ec_transfer_params": _refused("hand-off of encoders"),
    "guided_choice": _refused("structured answers"),
    "guided_decoding_backend": _refused("structured answers"),
    "guided_grammar": _refused("structured answers"),
    "guided_json": _refused("structured answers"),
    "guided_regex": _refused("structured answers"),
    "guided_whitespace_pattern": _refused("structured answers"),
    "ignore_eos": _refused("continue after the end", False),
    "include_reasoning": _refused("leave out the reasoning", True),
    "include_stop_str_in_output": _refused("keep the stop string", False),
    "length_penalty": _refused("beam search", 1),
    "logits_processors": _refused("code of the client", []),
    "logprob_token_ids": _refused("log probabilities"),
    "media_io_kwargs": _refused("images and sounds", {}),
    "min_tokens": _refused("the fewest tokens of an answer", 0),
    "mm_processor_kwargs": _refused("images and sounds", {}),
    "priority": _refused("order in the queue", 0),
    "prompt_logprobs": _refused("log probabilities"),
    "repetition_detection": _refused("end an answer that repeats itself"),
    "request_id": _ignored("the client's name for the request"),
    "return_mm_kwargs": _ignored("about another endpoint"),
    "return_prompt_text": _refused("the rendered prompt", False),
    "return_token_ids": _refused("ids beside the text", False),
    "return_token_offsets": _ignored("about another endpoint"),
    "return_tokens_as_token_ids": _refused("ids instead of text", False),
    "routed_experts_prompt_start": _ignored("about routed experts"),
    "session_id": _ignored("the client's name for the conversation"),
    "skip_special_tokens": _refused("special tokens in the text", True),
    "spaces_between_special_tokens": _ignored("about special tokens in the text"),
    "stop_token_ids": _refused("tokens that end the answer", []),
    "structured_outputs": _refused("structured answers"),
    "thinking_token_budget": _refused("how long to reason"),
    "truncate_prompt_tokens": _refused("cut the prompt"),
    "truncation_side": _ignored("about cut prompts"),
    "use_beam_search": _refused("beam search", False),
    "vllm_xargs": _refused("extensions", {}),
    "watermarking": _refused("a watermark in the text", False),
}
REQUEST = OPENAI | VLLM
STREAM_OPTIONS = {
    "include_usage": _done("a last chunk with the token counts"),
    "continuous_usage_stats": _refused("token counts in each chunk", False),
    "include_obfuscation": _ignored("padding against eavesdroppers"),
}
MESSAGE = {
    "content": _done("text, or parts of type `text`"),
    "name": _done("given to the chat template"),
    "role": _done("`system`, `developer` (taken as `system`), `user`, `assistant` or `tool`"),
    "tool_call_id": _done("the call that a `tool` answers"),
    "tool_calls": _done("what an `assistant` has called"),
    "annotations": _ignored("links in an answer"),
    "audio": _refused("a spoken answer"),
    "function_call": _refused("tools, by their old name"),
    "reasoning": _refused("the reasoning", ""),
    "reasoning_content": _refused("the reasoning", ""),
    "refusal": _refused("why the model did not answer", ""),
}
PART = {
    "text": _done("the text"),
    "type": _done("`text`"),
    "annotations": _ignored("links in an answer"),
    "cache_control": _ignored("about the provider's cache"),
    "prompt_cache_breakpoint": _ignored("about the provider's cache"),
}


def admitted(data: Any, table: Mapping[str, Rule], parent: str = "") -> Any:
    """The fields of ``data`` that are done; ``parent`` is the field that holds ``data``.

    Raises `UnsupportedParameterError` for a field that would change the answer and is not done.
    """
    if not isinstance(data, dict):
        return data
    kept = {}
    for name, value in data.items():
        rule = table.get(name)
        path = f"{parent}.{name}"[-80:] if parent else str(name)[:80]
        if rule is None:
            raise UnsupportedParameterError(
                f"{path}: this server does not know the field; expected those of "
                "/openapi.json. Leave it out.",
                path,
            )
        if rule.status == "done":
            kept[name] = value
        elif rule.status == "refused" and value is not None and value not in rule.neutral:
            only = "".join(f", or {_json(each)}" for each in rule.neutral)
            raise UnsupportedParameterError(
                f"{path}: this server does not do it ({rule.meaning}); expected no such field"
                f"{only}. Leave it out.",
                path,
            )
    return kept


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
