"""From neutral requests to requests in ids, with sampling and stops, for the engine and for generation.

The one place that knows what an option of a request means. Knows no wire and no HTTP: bad demands are
InvalidRequestErrors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

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
from server.conversion.generation_request import GenerationRequest
from server.conversion.neutral_request import ChatRequest, ReplyOptions, TextRequest
from server.conversion.prompt_encoding import PromptEncoder, check_ids, rendered_texts
from server.conversion.tools import NO_TOOLS, FunctionCalling
from server.engine.client import Prompt
from server.grammars.check import GrammarChecker
from server.grammars.reply_grammar import ReplyGrammars

DEFAULT_COMPLETION_TOKENS = 16
MAX_CHOICES_PER_REQUEST = 4096
# Every prompt is sent to the engine with the grammar.
MAX_GRAMMAR_CHARS_IN_ALL = 1 << 24
_SEED_MASK = (1 << 63) - 1
# No more characters of a prediction are read for a token: hardly any text has longer tokens.
_MAX_CHARS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Converter:
    """Makes requests ready for one checkpoint.

    Args:
        max_request_tokens: the most tokens a request may ask for, all choices together.
        clamp_max_tokens: cut a max_tokens that is more than the context has left, instead of refusing it.
        default_max_tokens: limit of chats that name none; None is what is left of the context.
        truncation: "auto" or "disabled", for chats that do not say.
    """

    encoder: PromptEncoder
    grammars: GrammarChecker
    max_request_tokens: int = 1 << 20
    clamp_max_tokens: bool = False
    default_max_tokens: int | None = None
    truncation: str = "disabled"
    replies: ReplyGrammars = field(init=False)

    def __post_init__(self) -> None:
        replies = ReplyGrammars(self.grammars, self.encoder.off_loop, self.encoder.tool_format)
        object.__setattr__(self, "replies", replies)

    async def convert(self, request: ChatRequest | TextRequest, engine: EngineReady) -> GenerationRequest:
        """Makes a request ready for the engine.

        Raises:
            InvalidRequestError: it cannot be served as asked.
        """
        if isinstance(request, ChatRequest):
            return await self.chat(request, engine)
        return await self.completion(request, engine)

    async def chat(self, chat: ChatRequest, engine: EngineReady) -> GenerationRequest:
        """Makes a conversation ready for the engine.

        Raises:
            InvalidRequestError: it cannot be served as asked.
        """
        options, calling = chat.options, chat.calling
        truncation = chat.truncation or self.truncation
        if truncation != "auto":
            texts = rendered_texts(chat)
            refuse_hopeless_length(texts, self.encoder.tokenizer, engine.max_model_len, param=chat.messages_param)
        window = prompt_window(truncation, options.max_tokens, engine.max_model_len, clamp=self.clamp_max_tokens)
        prompt = await self.encoder.chat(chat, window=window)
        default = self.default_max_tokens
        max_tokens = budget(
            len(prompt.ids),
            options.max_tokens,
            engine.max_model_len,
            default=None if default is None else max(default, options.min_tokens),
            param=options.max_tokens_param,
            prompt_param=chat.messages_param,
            clamp=self.clamp_max_tokens,
        )
        if chat.max_length is not None:
            max_tokens = min(max_tokens, max(1, chat.max_length - len(prompt.ids)))
        sampling = self._sampling(
            options,
            engine,
            max_tokens=max_tokens,
            grammar=await self.replies.of_chat(calling, prompt.rendered, options.answer, options.n),
        )
        prompts = [Prompt(prompt.ids, sampling, await self._prediction_ids(chat.prediction, max_tokens))]
        self._check_size(options, prompts, engine.max_model_len)
        return self._generation_request(
            options,
            prompts,
            opening=None if prompt.rendered.is_plain else prompt.rendered.opening,
            calling=calling,
        )

    async def _prediction_ids(self, text: str, max_tokens: int) -> tuple[int, ...]:
        """Returns the ids of the predicted text, no more than the reply can have."""
        text = text[: max_tokens * _MAX_CHARS_PER_TOKEN]
        if not text:
            return ()
        (ids,) = await self.encoder.texts([text])
        return tuple(ids[:max_tokens])

    async def completion(self, text: TextRequest, engine: EngineReady) -> GenerationRequest:
        """Makes texts ready for the engine.

        Raises:
            InvalidRequestError: they cannot be continued as asked.
        """
        options = text.options
        n = options.n
        texts, id_lists = await self._completion_prompts(text, engine)
        if len(id_lists) * n > MAX_CHOICES_PER_REQUEST:
            raise InvalidRequestError(
                f"{len(id_lists)} prompts times n = {n} is more than the {MAX_CHOICES_PER_REQUEST} choices a request"
                " may have; send several requests.",
                param="n",
            )
        grammar = await self.replies.of_answer(options.answer, len(id_lists) * n)
        if grammar is not None and len(grammar) * len(id_lists) > MAX_GRAMMAR_CHARS_IN_ALL:
            raise InvalidRequestError(
                f"So large a grammar for {len(id_lists)} prompts is too much; send several requests.", param="prompt"
            )
        most, clamp = engine.max_model_len, self.clamp_max_tokens
        budgets = [
            budget(len(ids), options.max_tokens, most, default=DEFAULT_COMPLETION_TOKENS, clamp=clamp)
            for ids in id_lists
        ]
        sampling = self._sampling(
            options,
            engine,
            max_tokens=min(budgets),
            num_echo_logprobs=options.num_logprobs if text.echo else None,
            grammar=grammar,
        )
        of_budget = {max_tokens: replace(sampling, max_tokens=max_tokens) for max_tokens in set(budgets)}
        prompts = [Prompt(ids, of_budget[max_tokens]) for ids, max_tokens in zip(id_lists, budgets, strict=True)]
        shows_prompts = text.echo or options.return_token_ids
        self._check_size(options, prompts, engine.max_model_len, shows_prompts=shows_prompts)
        return self._generation_request(options, prompts, echo_texts=texts if text.echo else ())

    async def _completion_prompts(
        self, text: TextRequest, engine: EngineReady
    ) -> tuple[Sequence[str], list[list[int]]]:
        """Returns the prompts as echo shows them (for ids, only with echo), and as ids."""
        if isinstance(text.prompts[0], str):
            texts = cast(Sequence[str], text.prompts)
            for one in texts:
                refuse_hopeless_length([one], self.encoder.tokenizer, engine.max_model_len, param="prompt")
            special_names = self.encoder.special_names(text.allowed_special, text.add_special_tokens)
            return texts, await self.encoder.texts(texts, special_names)
        id_lists = cast(list[list[int]], text.prompts)

        def work() -> Sequence[str]:
            for number, ids in enumerate(id_lists):
                param = "prompt" if len(id_lists) == 1 else f"prompt[{number}]"
                check_ids(ids, engine.vocab_size, param=param)
            decode = self.encoder.tokenizer.decode
            return [decode(ids, show_special_tokens=True) for ids in id_lists] if text.echo else ()

        return await self.encoder.off_loop.run(work), id_lists

    def _sampling(
        self,
        options: ReplyOptions,
        engine: EngineReady,
        *,
        max_tokens: int,
        num_echo_logprobs: int | None = None,
        grammar: str | None = None,
    ) -> SamplingParams:
        defaults = self.encoder.defaults
        check_ids(options.stop_token_ids, engine.vocab_size, param="stop_token_ids")
        if options.min_tokens > max_tokens:
            raise InvalidRequestError(
                f"'min_tokens' ({options.min_tokens}) is more than the {max_tokens} tokens a choice may have.",
                param="min_tokens",
            )
        prompt_counts = [n for n in (num_echo_logprobs, options.prompt_logprobs) if n is not None]
        top_p = _or(options.top_p, defaults.top_p)
        # The smallest nucleus is the likeliest token.
        is_greedy = top_p == 0
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=options.min_tokens,
            temperature=0.0 if is_greedy else _or(options.temperature, defaults.temperature),
            top_p=1.0 if is_greedy else top_p,
            top_k=max(0, defaults.top_k if options.top_k is None else options.top_k),
            min_p=float(options.min_p),
            presence_penalty=float(options.presence_penalty),
            frequency_penalty=float(options.frequency_penalty),
            repetition_penalty=_or(options.repetition_penalty, defaults.repetition_penalty),
            logit_bias=_logit_bias(options.logit_bias, engine.vocab_size),
            seed=None if options.seed is None else options.seed & _SEED_MASK,
            num_logprobs=options.num_logprobs,
            num_prompt_logprobs=max(prompt_counts, default=None),
            eos_token_ids=self._eos_token_ids(engine.vocab_size),
            stop_token_ids=tuple(options.stop_token_ids),
            ignore_eos=options.ignore_eos,
            grammar=grammar,
        )

    def _check_size(
        self, options: ReplyOptions, prompts: Sequence[Prompt], max_model_len: int, *, shows_prompts: bool = False
    ) -> None:
        refuse_large_request(prompts, options.n, self.max_request_tokens, shows_prompts=shows_prompts)
        if not options.stream:
            refuse_large_reply(prompts, options.n, max_model_len)

    def _eos_token_ids(self, vocab_size: int) -> tuple[int, ...]:
        tokenizer = self.encoder.tokenizer
        ids = [tokenizer.endoftext_id, *self.encoder.defaults.eos_token_ids]
        if self.encoder.speaks_chatml:
            ids += [tokenizer.im_end_id, tokenizer.im_start_id]
        return tuple(dict.fromkeys(i for i in ids if i < vocab_size))

    def _generation_request(
        self,
        options: ReplyOptions,
        prompts: Sequence[Prompt],
        *,
        echo_texts: Sequence[str] = (),
        opening: str | None = None,
        calling: FunctionCalling = NO_TOOLS,
    ) -> GenerationRequest:
        """Joins prompts and options; with an opening, a parser that goes on from it reads the replies."""
        parser = self.encoder.tool_format.parser
        stops = (options.stop,) if isinstance(options.stop, str) and options.stop else tuple(options.stop)
        if not options.ignore_eos:
            stops = (*stops, *self.encoder.default_stops)
        return GenerationRequest(
            prompts=tuple(prompts),
            n=options.n,
            stops=tuple(dict.fromkeys(stops)),
            include_stop_str_in_output=options.include_stop_str_in_output,
            priority=options.priority,
            cache_salt=options.cache_salt,
            num_logprobs=options.num_logprobs,
            num_prompt_logprobs=options.prompt_logprobs,
            return_tokens_as_token_ids=options.return_tokens_as_token_ids,
            return_token_ids=options.return_token_ids,
            show_special_tokens=not options.skip_special_tokens,
            echo_texts=tuple(echo_texts),
            new_parser=None if opening is None else partial(parser, opening, calling.names, calling.text_tools),
            custom_tools=calling.custom_tools,
            text_tools=calling.text_tools,
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _logit_bias(bias: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in bias.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < vocab_size):
            raise InvalidRequestError(
                f"'logit_bias' keys are token ids from 0 to {vocab_size - 1}, not {key[:40]!r}.", param="logit_bias"
            )
        pairs.append((int(key), float(value)))
    return tuple(pairs)
