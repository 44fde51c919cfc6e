"""Every field of a chat completion's request that OpenAI or vLLM have, and what is done with it.

The schema refuses by this table, and a table in docs/serve.md is made of it. A field that would
change the answer is done or refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..card.errors import UnsupportedParameterError

Status = Literal["done", "ignored", "refused"]


@dataclass(frozen=True)
class Known:
    """What is done with a field.

    Attributes:
        status: ``ignored`` fields change no answer.
        says: of a field that is done what it does, of others what they are for.
        neutral: values of a refused field that ask for nothing, and so are taken.
    """

    status: Status
    says: str
    neutral: tuple[Any, ...] = ()

    def takes(self, value: Any) -> bool:
        """Whether a field that is not done may have this value."""
        return self.status != "refused" or value is None or value in self.neutral


def _done(says: str) -> Known:
    return Known("done", says)


def _ignored(says: str) -> Known:
    return Known("ignored", says)


def _refused(says: str, *neutral: Any) -> Known:
    return Known("refused", says, neutral)


OPENAI = {
    "messages": _done("the conversation, or what follows a card"),
    "model": _done("the served model's name"),
    "max_tokens": _done("the most tokens of an answer; cut to the room in the context"),
    "max_completion_tokens": _done("the same by its newer name"),
    "temperature": _done("0 is greedy"),
    "top_p": _done("sample from the likeliest tokens of this mass"),
    "seed": _done("the same answer again"),
    "stop": _done("strings that end the answer"),
    "stream": _done("send the answer as it is made"),
    "stream_options": _done("`include_usage`"),
    "audio": _refused("spoken answers"),
    "frequency_penalty": _refused("a penalty on frequent tokens", 0),
    "function_call": _refused("tools by their old name", "none", "auto"),
    "functions": _refused("tools by their old name", []),
    "logit_bias": _refused("a bias on tokens", {}),
    "logprobs": _refused("log probabilities", False),
    "metadata": _ignored("the client's notes"),
    "modalities": _refused("answers that are no text", ["text"]),
    "moderation": _refused("checks of what is said"),
    "n": _refused("several answers", 1),
    "parallel_tool_calls": _ignored("about tools"),
    "prediction": _ignored("a guess that saves time"),
    "presence_penalty": _refused("a penalty on tokens that came before", 0),
    "prompt_cache_key": _ignored("about the provider's cache"),
    "prompt_cache_options": _ignored("about the provider's cache"),
    "prompt_cache_retention": _ignored("about the provider's cache"),
    "reasoning_effort": _refused("how long to think"),
    "response_format": _refused("answers in a form", {"type": "text"}),
    "safety_identifier": _ignored("who the user is"),
    "service_tier": _ignored("about the provider's prices"),
    "store": _ignored("keep the answer at the provider"),
    "tool_choice": _refused("tools", "none", "auto"),
    "tools": _refused("tools", []),
    "top_logprobs": _refused("log probabilities", 0),
    "user": _ignored("who the user is"),
    "verbosity": _refused("how much to say", "medium"),
    "web_search_options": _refused("search"),
}
VLLM = {
    "cache_salt": _done("keep and match cards apart"),
    "kv_transfer_params": _done("the hand-off"),
    "min_p": _done("sample no token less likely than this share of the likeliest"),
    "repetition_penalty": _done("a penalty on tokens of prompt and answer"),
    "top_k": _done("sample from so many likeliest tokens; 0 and -1 are all"),
    "add_generation_prompt": _refused("leave out what asks for an answer", True),
    "add_special_tokens": _refused("special tokens besides the template's", False),
    "allowed_token_ids": _refused("no other tokens"),
    "bad_words": _refused("words that may not come", []),
    "best_of": _refused("the best of several answers", 1),
    "chat_template": _refused("another template"),
    "chat_template_kwargs": _refused("settings of the template", {}),
    "continue_final_message": _refused("go on with the last message", False),
    "documents": _refused("documents for the template", []),
    "echo": _refused("repeat the last message", False),
    "ec_transfer_params": _refused("hand-off of encoders"),
    "guided_choice": _refused("answers in a form"),
    "guided_decoding_backend": _refused("answers in a form"),
    "guided_grammar": _refused("answers in a form"),
    "guided_json": _refused("answers in a form"),
    "guided_regex": _refused("answers in a form"),
    "guided_whitespace_pattern": _refused("answers in a form"),
    "ignore_eos": _refused("go on after the end", False),
    "include_reasoning": _refused("leave out what was thought", True),
    "include_stop_str_in_output": _refused("keep the stop string", False),
    "length_penalty": _refused("beam search", 1),
    "logits_processors": _refused("code of the client", []),
    "logprob_token_ids": _refused("log probabilities"),
    "media_io_kwargs": _refused("images and sounds", {}),
    "min_tokens": _refused("the fewest tokens of an answer", 0),
    "mm_processor_kwargs": _refused("images and sounds", {}),
    "priority": _refused("go before others", 0),
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
    "structured_outputs": _refused("answers in a form"),
    "thinking_token_budget": _refused("how long to think"),
    "truncate_prompt_tokens": _refused("cut the prompt"),
    "truncation_side": _ignored("about cut prompts"),
    "use_beam_search": _refused("beam search", False),
    "vllm_xargs": _refused("extensions", {}),
    "watermarking": _refused("a watermark in the text", False),
}
REQUEST = OPENAI | VLLM
STREAM_OPTIONS = {
    "include_usage": _done("a last chunk with the tokens that were counted"),
    "continuous_usage_stats": _refused("tokens counted in each chunk", False),
    "include_obfuscation": _ignored("padding against listeners"),
}
MESSAGE = {
    "content": _done("text, or parts of type `text`"),
    "name": _done("given to the chat template"),
    "role": _done("`system`, `developer` (taken as `system`), `user` or `assistant`"),
    "annotations": _ignored("links in an answer"),
    "audio": _refused("a spoken answer"),
    "function_call": _refused("tools by their old name"),
    "reasoning": _refused("what was thought", ""),
    "reasoning_content": _refused("what was thought", ""),
    "refusal": _refused("why the model did not answer", ""),
    "tool_call_id": _refused("tools"),
    "tool_calls": _refused("tools", []),
}
PART = {
    "text": _done("the text"),
    "type": _done("`text`"),
    "annotations": _ignored("links in an answer"),
    "cache_control": _ignored("about the provider's cache"),
    "prompt_cache_breakpoint": _ignored("about the provider's cache"),
}


def admitted(data: Any, table: Mapping[str, Known], of: str = "") -> Any:
    """The fields of ``data`` that are done; ``of`` is what it is in, such as ``messages``.

    Raises `UnsupportedParameterError` for one that would change the answer and is not done.
    """
    if not isinstance(data, dict):
        return data
    kept = {}
    for name, value in data.items():
        known = table.get(name)
        where = f"{of}.{name}"[-80:] if of else str(name)[:80]
        if known is None:
            raise UnsupportedParameterError(
                f"{where}: this server does not know the field; expected those of "
                "/openapi.json. Leave it out.",
                where,
            )
        if known.status == "done":
            kept[name] = value
        elif not known.takes(value):
            only = "".join(f", or {_json(each)}" for each in known.neutral)
            raise UnsupportedParameterError(
                f"{where}: this server does not do it ({known.says}); expected no such field"
                f"{only}. Leave it out.",
                where,
            )
    return kept


def table_of(fields: Mapping[str, Known]) -> str:
    """The fields as a table of Markdown, for docs/serve.md."""
    lines = ["| field | | |", "|---|---|---|"]
    for name, known in fields.items():
        taken = ", ".join(f"`{_json(each)}`" for each in known.neutral)
        also = f"; {taken} is taken" if taken else ""
        lines.append(f"| `{name}` | {_WORDS[known.status]} | {known.says}{also} |")
    return "\n".join(lines) + "\n"


_WORDS = {"done": "done", "ignored": "harmless, ignored", "refused": "refused"}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
