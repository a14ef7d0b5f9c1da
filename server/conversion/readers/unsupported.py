"""Fields that are not served: those that demand something are refused by name, unknown ones are named in the log.

A reply that was to be held to something, and is not, looks like a good one. So what OpenAI's API and our peers have
to constrain a reply, or to change its prompt, is known here by name even where it cannot be honoured.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any, NamedTuple

from model.contract.errors import InvalidRequestError
from server.conversion.readers.formats import PEER_NAMES
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from server.wire.shapes.generation import RequestBody
from server.wire.shapes.messages import CountTokensRequest, MessagesRequest
from server.wire.shapes.responses import ResponsesRequest

logger = logging.getLogger(__name__)

# Names come from clients: after so many, no new ones are remembered and logged.
_MAX_LOGGED_NAMES = 256
_MAX_NAME_CHARS = 60


class _Unserved(NamedTuple):
    """A field that is refused.

    Attributes:
        hint: advice, as a clause; empty where leaving the field out is all there is to do.
        neutral: values besides null, false and what is empty that ask for nothing.
    """

    hint: str = ""
    neutral: tuple[float, ...] = ()


def _called(name: str, *neutral: float) -> _Unserved:
    return _Unserved(f"here it is called '{name}'", neutral)


_WORDS = _Unserved("use 'logit_bias' for or against single tokens, or 'structured_outputs'")
_BEAMS = _Unserved("ask for several choices with 'n'", (1,))
_SAMPLER = "sampling here knows temperature, top_p, top_k, min_p and the penalties"
_CHATS = _Unserved("it belongs to /v1/chat/completions")

# Known to vLLM, SGLang, llama.cpp, text-generation-inference and others; what they take for "off" is let through.
_UNSERVED = {
    **dict.fromkeys(("bad_words", "bad_words_ids", "banned_tokens", "banned_strings", "sequence_bias"), _WORDS),
    **dict.fromkeys(("force_words_ids", "allowed_token_ids", "allowed_tokens", "custom_token_bans"), _WORDS),
    **dict.fromkeys(("use_beam_search", "num_beams", "length_penalty", "early_stopping"), _BEAMS),
    **dict.fromkeys(("logits_processors", "logit_processors", "custom_logit_processor"), _Unserved()),
    **dict.fromkeys(("structural_tag", "grammar_triggers"), _Unserved("use 'tools' or 'structured_outputs'")),
    **dict.fromkeys(("grammar_string", "regex_pattern", "nvext"), _Unserved("use 'structured_outputs'")),
    "negative_prompt": _Unserved(),
    **dict.fromkeys(("guided_whitespace_pattern", "format"), _Unserved("use 'response_format'")),
    "stop_regex": _Unserved("use 'stop' or 'structured_outputs'"),
    "truncate_prompt_tokens": _Unserved('a chat may send "truncation": "auto"'),
    **dict.fromkeys(("chat_template", "documents"), _Unserved("write what the model is to read into 'messages'")),
    "prompt_embeds": _Unserved("send text or token ids"),
    **dict.fromkeys(("max_new_tokens", "n_predict", "num_predict"), _called("max_tokens", -1)),
    "min_new_tokens": _called("min_tokens"),
    **dict.fromkeys(("stop_sequences", "stop_words"), _called("stop")),
    "repeat_penalty": _called("repetition_penalty", 1),
    **dict.fromkeys(("mirostat", "mirostat_mode", "dry_multiplier", "xtc_probability", "dynatemp_range", "top_a",
                     "no_repeat_ngram_size"), _Unserved(_SAMPLER)),
    **dict.fromkeys(("typical_p", "tfs", "tfs_z"), _Unserved(_SAMPLER, (1,))),
    "top_n_sigma": _Unserved(_SAMPLER, (-1,)),
}  # fmt: skip
_UNSERVED_IN_CHAT = {
    "echo": _Unserved("the reply to a last message of the assistant goes on from its text"),
    "best_of": _BEAMS,
}
_UNSERVED_IN_COMPLETIONS = dict.fromkeys(
    ("messages", "tools", "functions", "tool_choice", "function_call", "truncation"), _CHATS
)
_HOSTED = _Unserved("what OpenAI does on its own servers is not done here")
_UNSERVED_IN_RESPONSES = {
    "messages": _called("input"),
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), _called("max_output_tokens")),
    "response_format": _called("text.format"),
    "functions": _called("tools"),
    "function_call": _called("tool_choice"),
    "logprobs": _Unserved('send "include": ["message.output_text.logprobs"]'),
    "n": _Unserved("send several requests", (1,)),
    "prompt": _Unserved("prompts kept at OpenAI are not known here; write them into 'instructions' and 'input'"),
    "prompt_logprobs": _CHATS,
    **dict.fromkeys(("context_management", "moderation", "image"), _HOSTED),
}
_UNSERVED_IN_MESSAGES = {
    # Without the hints, which name fields that this API does not have; `stop_sequences` is its own, also where tokens
    # are only counted.
    **{name: _Unserved("", refused.neutral) for name, refused in _UNSERVED.items() if name != "stop_sequences"},
    "mcp_servers": _Unserved("this server calls no tools; send them as 'tools' and run them yourself"),
    "container": _Unserved("this server runs no code"),
    "response_format": _Unserved("here it is 'output_config.format'"),
    **dict.fromkeys(("stop", "stop_words"), _called("stop_sequences")),
    "n": _Unserved("a message has one reply", (1,)),
    "functions": _Unserved("here they are 'tools'"),
    **dict.fromkeys(("max_completion_tokens", "max_output_tokens"), _called("max_tokens")),
    **dict.fromkeys(("max_new_tokens", "n_predict", "num_predict"), _called("max_tokens", -1)),
    **dict.fromkeys(("min_tokens", "min_new_tokens", "min_p", "presence_penalty", "frequency_penalty", "logit_bias",
                     "stop_token_ids", "ignore_eos", "logprobs", "structured_outputs", *PEER_NAMES), _CHATS),
    **dict.fromkeys(("repetition_penalty", "repeat_penalty"), _Unserved(_CHATS.hint, (1,))),
}  # fmt: skip
# OpenAI's fields about storage, tiers and caches, which this server does not have, and vLLM's about its own insides.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "guided_decoding_backend", "spaces_between_special_tokens",
    }
)  # fmt: skip

_UNSERVED_IN: dict[type[RequestBody], dict[str, _Unserved]] = {
    ChatCompletionRequest: _UNSERVED | _UNSERVED_IN_CHAT,
    CompletionRequest: _UNSERVED | _UNSERVED_IN_COMPLETIONS,
    ResponsesRequest: _UNSERVED | _UNSERVED_IN_RESPONSES,
    MessagesRequest: _UNSERVED_IN_MESSAGES,
    CountTokensRequest: _UNSERVED_IN_MESSAGES,
}


def refuse_unserved(request: RequestBody) -> None:
    """Refuses what would otherwise be ignored.

    Raises:
        InvalidRequestError: naming the field.
    """
    unserved = _UNSERVED_IN[type(request)]
    for name, value in (request.model_extra or {}).items():
        if name in unserved and _asks(value, unserved[name].neutral):
            hint = unserved[name].hint
            raise InvalidRequestError(f"'{name}' is not served{': ' + hint if hint else ''}.", param=name)


def _asks(value: Any, neutral: tuple[float, ...]) -> bool:
    if value is None or value == "none":
        return False
    if isinstance(value, bool | str | list | dict):
        return bool(value)
    return bool(value) and value not in neutral


class UnknownFields:
    """Logs the names of ignored fields, once each: a misspelt one looks like one that does nothing."""

    def __init__(self) -> None:
        self._logged: set[str] = set()
        self._told_of_chatml = False

    def note(self, request: RequestBody) -> None:
        """Logs what is new in a request that is being served."""
        if isinstance(request, CompletionRequest):
            self._note_written_chatml(request)
        unserved = _UNSERVED_IN.get(type(request), {})
        for name in itertools.islice(request.model_extra or (), _MAX_LOGGED_NAMES):
            name = name[:_MAX_NAME_CHARS]
            if name in _WITHOUT_EFFECT or name in unserved:
                continue
            if name not in self._logged and len(self._logged) < _MAX_LOGGED_NAMES:
                self._logged.add(name)
                logger.warning("requests have a field %s, which is not known here and is ignored", ascii(name))

    def _note_written_chatml(self, request: CompletionRequest) -> None:
        """Says once what to send instead of prompts in which names of control tokens are text.

        ChatML written by hand is a habit of the published tokenizer's users, whose default reads the names as tokens.
        """
        if self._told_of_chatml or request.add_special_tokens or request.allowed_special is not None:
            return
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt or ()
        if any(isinstance(prompt, str) and "<|im_start|>" in prompt for prompt in prompts):
            self._told_of_chatml = True
            logger.warning(
                "a prompt of /v1/completions holds <|im_start|>, which is plain text there; use /v1/chat/completions,"
                ' or send "add_special_tokens": true to have the names of control tokens read as the tokens'
            )
