"""From wire requests to what the engine and the text side need: ids, sampling, stops.

The one place that knows what a field of a request means. Knows no HTTP: bad demands are InvalidRequestErrors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from model.contract.errors import InvalidRequestError
from model.contract.messages import EngineReady
from model.contract.sampling_params import SamplingParams
from server.conversion.budget import (
    budget,
    prompt_window,
    refuse_hopeless_length,
    refuse_large_reply,
    refuse_large_request,
)
from server.conversion.formats import read_answer_format
from server.conversion.generation_request import GenerationRequest, ReplyReading
from server.conversion.prompt_encoding import PromptEncoder, check_ids, rendered_texts
from server.conversion.tools import read_function_calling
from server.engine.client import Prompt
from server.grammars.check import GrammarChecker
from server.grammars.reply_grammar import ReplyGrammars
from server.wire.requests import ChatCompletionRequest, CompletionRequest, SamplingFields
from server.wire.unsupported import UnknownFields, refuse_unserved

DEFAULT_COMPLETION_TOKENS = 16
MAX_CHOICES_PER_REQUEST = 4096
# The engine is told the grammar with each prompt.
MAX_GRAMMAR_CHARS_IN_ALL = 1 << 24
_SEED_MASK = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Converter:
    """Understands requests for one checkpoint.

    Args:
        encoder: of the checkpoint.
        grammars: compiles what replies are held to.
        max_request_tokens: the most tokens a request may ask for, all choices together.
        clamp_max_tokens: cut a wish for more tokens than the context has left, instead of refusing it.
        default_max_tokens: of a chat that names no limit; None is what is left of the context.
        truncation: of chats that name none: "auto" or "disabled".
        unknown_fields: told of each request, for the log.
    """

    encoder: PromptEncoder
    grammars: GrammarChecker
    max_request_tokens: int = 1 << 20
    clamp_max_tokens: bool = False
    default_max_tokens: int | None = None
    truncation: str = "disabled"
    unknown_fields: UnknownFields = field(default_factory=UnknownFields)
    replies: ReplyGrammars = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "replies", ReplyGrammars(self.grammars, self.encoder.off_loop))

    async def chat(self, request: ChatCompletionRequest, engine: EngineReady) -> GenerationRequest:
        """Understands a chat request.

        Raises:
            InvalidRequestError: it cannot be served as asked.
        """
        self._look_over(request)
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequestError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        calling, answer = await self.encoder.off_loop.run(
            lambda: (read_function_calling(request), read_answer_format(request))
        )
        truncation = request.truncation or self.truncation
        if truncation != "auto":
            texts = rendered_texts(request.messages, calling)
            refuse_hopeless_length(texts, self.encoder.tokenizer, engine.max_model_len, param="messages")
        newer_name = request.max_completion_tokens is not None
        asked = request.max_completion_tokens if newer_name else request.max_tokens
        prompt = await self.encoder.chat(
            request.messages,
            calling,
            continue_final=request.continue_final_message,
            window=prompt_window(truncation, asked, engine.max_model_len, clamp=self.clamp_max_tokens),
        )
        default = self.default_max_tokens
        max_tokens = budget(
            len(prompt.ids),
            asked,
            engine.max_model_len,
            default=None if default is None else max(default, request.min_tokens or 0),
            param="max_completion_tokens" if newer_name else "max_tokens",
            prompt_param="messages",
            clamp=self.clamp_max_tokens,
        )
        if request.max_length is not None:  # which never kept a reply from its first token
            max_tokens = min(max_tokens, max(1, request.max_length - len(prompt.ids)))
        num_top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        sampling = self._sampling(
            request,
            engine,
            max_tokens=max_tokens,
            num_logprobs=num_top_logprobs,
            grammar=await self.replies.of_chat(calling, prompt.react.place, answer, request.n or 1),
        )
        reading = None
        if prompt.react.place != "text":
            names = tuple(tool.name_for_model for tool in calling.tools)
            reading = ReplyReading(
                prompt.react.opening, names, calling.is_legacy, calling.text_tools, calling.custom_tools
            )
        prompts = [Prompt(prompt.ids, sampling)]
        self._check_size(request, prompts, engine.max_model_len, shows_prompts=False)
        return _generation_request(
            request,
            prompts,
            num_top_logprobs,
            default_stops=self.encoder.default_stops,
            reading=reading,
            speaks_functions=calling.is_legacy
            or any(message.role == "function" or message.function_call is not None for message in request.messages),
        )

    def _look_over(self, request: ChatCompletionRequest | CompletionRequest) -> None:
        """Refuses what contradicts itself or is not served, and logs what is ignored."""
        refuse_unserved(request)
        if request.stream_options is not None and not request.stream:
            raise InvalidRequestError("'stream_options' needs 'stream': true.", param="stream_options")
        if request.prompt_logprobs is not None and request.stream:
            raise InvalidRequestError("'prompt_logprobs' is not reported in streams.", param="prompt_logprobs")
        self.unknown_fields.note(request)

    async def completion(self, request: CompletionRequest, engine: EngineReady) -> GenerationRequest:
        """Understands a legacy completion request.

        Raises:
            InvalidRequestError: it cannot be served as asked.
        """
        self._look_over(request)
        n = request.n or 1
        if request.suffix:
            raise InvalidRequestError("'suffix' is not supported: these models only continue a text.", param="suffix")
        if request.best_of is not None and request.best_of != n:
            raise InvalidRequestError("'best_of' is supported only where it equals 'n'.", param="best_of")
        texts, id_lists = await self._completion_prompts(request, engine)
        if len(id_lists) * n > MAX_CHOICES_PER_REQUEST:
            raise InvalidRequestError(
                f"{len(id_lists)} prompts times n = {n} is more than the {MAX_CHOICES_PER_REQUEST} choices a request"
                " may have; send several requests.",
                param="n",
            )
        answer = await self.encoder.off_loop.run(lambda: read_answer_format(request))
        grammar = await self.replies.of_answer(answer, len(id_lists) * n)
        if grammar is not None and len(grammar) * len(id_lists) > MAX_GRAMMAR_CHARS_IN_ALL:
            raise InvalidRequestError(
                f"So large a grammar for {len(id_lists)} prompts is too much; send several requests.", param="prompt"
            )
        budgets = [
            budget(
                len(ids),
                request.max_tokens,
                engine.max_model_len,
                default=DEFAULT_COMPLETION_TOKENS,
                clamp=self.clamp_max_tokens,
            )
            for ids in id_lists
        ]
        sampling = self._sampling(
            request,
            engine,
            max_tokens=min(budgets),
            num_logprobs=request.logprobs,
            num_echo_logprobs=request.logprobs if request.echo else None,
            grammar=grammar,
        )
        of_budget = {max_tokens: replace(sampling, max_tokens=max_tokens) for max_tokens in set(budgets)}
        prompts = [Prompt(ids, of_budget[max_tokens]) for ids, max_tokens in zip(id_lists, budgets, strict=True)]
        shows_prompts = bool(request.echo or request.return_token_ids)
        self._check_size(request, prompts, engine.max_model_len, shows_prompts=shows_prompts)
        return _generation_request(
            request,
            prompts,
            request.logprobs,
            default_stops=self.encoder.default_stops,
            echo_texts=texts if request.echo else (),
        )

    async def _completion_prompts(
        self, request: CompletionRequest, engine: EngineReady
    ) -> tuple[Sequence[str], list[list[int]]]:
        """Returns each prompt as echo shows it (ids: only with echo), and as ids."""
        prompt = request.prompt
        if prompt is None or isinstance(prompt, str):
            prompt = [prompt or ""]
        elif isinstance(prompt[0], int):
            prompt = [prompt]
        if isinstance(prompt[0], str):
            for text in prompt:
                refuse_hopeless_length([text], self.encoder.tokenizer, engine.max_model_len, param="prompt")
            special_names = self.encoder.special_names(request)
            if not special_names and request.allowed_special is None:
                self.unknown_fields.note_written_chatml(prompt)
            return prompt, await self.encoder.texts(prompt, special_names)

        def work() -> Sequence[str]:
            for number, ids in enumerate(prompt):
                check_ids(ids, engine.vocab_size, param="prompt" if len(prompt) == 1 else f"prompt[{number}]")
            decode = self.encoder.tokenizer.decode
            return [decode(ids, show_special_tokens=True) for ids in prompt] if request.echo else ()

        return await self.encoder.off_loop.run(work), prompt

    def _sampling(
        self,
        request: SamplingFields,
        engine: EngineReady,
        *,
        max_tokens: int,
        num_logprobs: int | None,
        num_echo_logprobs: int | None = None,
        grammar: str | None = None,
    ) -> SamplingParams:
        defaults = self.encoder.defaults
        stop_token_ids = tuple(request.stop_token_ids or ())
        check_ids(stop_token_ids, engine.vocab_size, param="stop_token_ids")
        min_tokens = request.min_tokens or 0
        if min_tokens > max_tokens:
            raise InvalidRequestError(
                f"'min_tokens' ({min_tokens}) is more than the {max_tokens} tokens a choice may have.",
                param="min_tokens",
            )
        prompt_counts = [n for n in (num_echo_logprobs, request.prompt_logprobs) if n is not None]
        top_p = _or(request.top_p, defaults.top_p)
        # The smallest nucleus is the likeliest token.
        is_greedy = top_p == 0
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=0.0 if is_greedy else _or(request.temperature, defaults.temperature),
            top_p=1.0 if is_greedy else top_p,
            top_k=max(0, defaults.top_k if request.top_k is None else request.top_k),
            min_p=_or(request.min_p, 0.0),
            presence_penalty=_or(request.presence_penalty, 0.0),
            frequency_penalty=_or(request.frequency_penalty, 0.0),
            repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
            logit_bias=_logit_bias(request.logit_bias, engine.vocab_size),
            seed=None if request.seed is None else request.seed & _SEED_MASK,
            num_logprobs=num_logprobs,
            num_prompt_logprobs=max(prompt_counts, default=None),
            eos_token_ids=self._eos_token_ids(engine.vocab_size),
            stop_token_ids=stop_token_ids,
            ignore_eos=bool(request.ignore_eos),
            grammar=grammar,
        )

    def _check_size(
        self, request: SamplingFields, prompts: Sequence[Prompt], max_model_len: int, *, shows_prompts: bool
    ) -> None:
        n = request.n or 1
        refuse_large_request(prompts, n, shows_prompts=shows_prompts, max_request_tokens=self.max_request_tokens)
        if not request.stream:
            refuse_large_reply(prompts, n, max_model_len)

    def _eos_token_ids(self, vocab_size: int) -> tuple[int, ...]:
        tokenizer = self.encoder.tokenizer
        ids = [tokenizer.endoftext_id, *self.encoder.defaults.eos_token_ids]
        if self.encoder.speaks_chatml:
            ids += [tokenizer.im_end_id, tokenizer.im_start_id]
        return tuple(dict.fromkeys(i for i in ids if i < vocab_size))


def _generation_request(
    request: SamplingFields,
    prompts: Sequence[Prompt],
    num_top_logprobs: int | None,
    *,
    default_stops: Sequence[str],
    echo_texts: Sequence[str] = (),
    reading: ReplyReading | None = None,
    speaks_functions: bool = False,
) -> GenerationRequest:
    stop = request.stop
    stops = [stop] if isinstance(stop, str) and stop else stop or ()
    if not request.ignore_eos:
        stops = (*stops, *default_stops)
    return GenerationRequest(
        prompts=tuple(prompts),
        n=request.n or 1,
        stops=tuple(dict.fromkeys(stops)),
        include_stop=bool(request.include_stop_str_in_output),
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        num_top_logprobs=num_top_logprobs,
        num_prompt_logprobs=request.prompt_logprobs,
        names_are_ids=bool(request.return_tokens_as_token_ids),
        return_token_ids=bool(request.return_token_ids),
        show_special_tokens=request.skip_special_tokens is False,
        echo_texts=tuple(echo_texts),
        reading=reading,
        speaks_functions=speaks_functions,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _logit_bias(bias: dict[str, float] | None, vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < vocab_size):
            raise InvalidRequestError(
                f"'logit_bias' keys are token ids from 0 to {vocab_size - 1}, not {key[:40]!r}.", param="logit_bias"
            )
        pairs.append((int(key), float(value)))
    return tuple(pairs)
