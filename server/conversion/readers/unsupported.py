"""What a request asks for that is not served: demands are refused by name, what is merely unknown is named in the log.

A reply that was to be held to something, and is not, looks like a good one. So what OpenAI's API and our peers have
to constrain a reply, or to change its prompt, is known here by name even where it cannot be honoured.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any, NamedTuple

from model.contract.errors import InvalidRequestError
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from server.wire.shapes.generation import GenerationFields, RequestBody
from server.wire.shapes.responses import ResponsesRequest

logger = logging.getLogger(__name__)

# Names come from clients: so many are remembered, and then no new one is logged.
_MAX_LOGGED_NAMES = 256
_MAX_NAME_CHARS = 60


class _Unserved(NamedTuple):
    """A field that is refused.

    Attributes:
        hint: what to do, as a clause; empty where there is nothing but to leave it out.
        neutral: values besides null, false and what is empty that ask for nothing.
    """

    hint: str = ""
    neutral: tuple[float, ...] = ()


def _called(name: str, *neutral: float) -> _Unserved:
    return _Unserved(f"here it is called '{name}'", neutral)


_WORDS = _Unserved("use 'logit_bias' for or against single tokens, or 'structured_outputs'")
_BEAMS = _Unserved("ask for several choices with 'n'", (1,))
_SAMPLER = "sampling here knows temperature, top_p, top_k, min_p and the penalties"
_ROUTES = "it belongs to /v1/chat/completions"

# Of vLLM, SGLang, llama.cpp, text-generation-inference and others; what they take for "off" is let through.
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
    ("messages", "tools", "functions", "tool_choice", "function_call", "truncation"), _Unserved(_ROUTES)
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
    "prompt_logprobs": _Unserved(_ROUTES),
    **dict.fromkeys(("context_management", "moderation", "image"), _HOSTED),
}
# OpenAI's, about what this server does not have: storage, tiers, caches to be named; and vLLM's, about its own insides.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "guided_decoding_backend", "spaces_between_special_tokens",
    }
)  # fmt: skip


_KNOWN = _WITHOUT_EFFECT.union(_UNSERVED, _UNSERVED_IN_CHAT, _UNSERVED_IN_COMPLETIONS, _UNSERVED_IN_RESPONSES)


def refuse_unserved(request: GenerationFields) -> None:
    """Refuses what would otherwise be ignored.

    Raises:
        InvalidRequestError: naming the field.
    """
    unserved = _UNSERVED | _UNSERVED_IN_COMPLETIONS
    if isinstance(request, ResponsesRequest):
        unserved = _UNSERVED | _UNSERVED_IN_RESPONSES
    if isinstance(request, ChatCompletionRequest):
        unserved = _UNSERVED | _UNSERVED_IN_CHAT
        if request.audio is not None or any(modality != "text" for modality in request.modalities or ()):
            param = "audio" if request.audio is not None else "modalities"
            raise InvalidRequestError("These models write text only; leave out audio and modalities.", param=param)
        is_continued = request.messages[-1].role == "assistant" and request.continue_final_message is not False
        if request.add_generation_prompt is False and not is_continued:
            raise InvalidRequestError(
                "'add_generation_prompt': false leaves no turn to write in; it goes with a last message of the"
                " assistant that is continued.",
                param="add_generation_prompt",
            )
        if request.web_search_options is not None:
            raise InvalidRequestError("This server cannot search the web.", param="web_search_options")
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
    """Names, once each, the fields of requests that are ignored: a misspelt one looks like one that does nothing."""

    def __init__(self) -> None:
        self._logged: set[str] = set()
        self._told_of_chatml = False

    def note(self, request: RequestBody) -> None:
        """Takes a request that is being served."""
        for name in itertools.islice(request.model_extra or (), _MAX_LOGGED_NAMES):
            name = name[:_MAX_NAME_CHARS]
            if name in _KNOWN:
                continue
            if name not in self._logged and len(self._logged) < _MAX_LOGGED_NAMES:
                self._logged.add(name)
                logger.warning("requests have a field %s, which is not known here and is ignored", ascii(name))

    def note_written_chatml(self, request: CompletionRequest) -> None:
        """Takes a request in whose prompts names of control tokens may be text; tells once what to send instead.

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
