"""Encodes conversations and texts into the token ids that the model sees.

Text from a request only ever becomes ordinary tokens here, unless a completion opts in to control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from model.contract.errors import InvalidRequestError
from model.contract.tokenizer import Tokenizer
from prompts import chatml, segments, tool_formats
from prompts.messages import Message
from prompts.segments import Segment
from prompts.tool_format import RenderedPrompt, ToolFormat
from server.conversion.defaults import CHATML, GenerationDefaults
from server.conversion.neutral_request import ChatRequest
from server.conversion.tools import FunctionCalling
from server.off_loop import OffLoop

# Calls of a conversation; each is read, matched with its results and rendered.
MAX_CALLS = 4096


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the model sees it.

    Attributes:
        ids: the prompt.
        rendered: the same in segments, and how the reply is to be read.
    """

    ids: list[int]
    rendered: RenderedPrompt


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Encodes prompts for one checkpoint.

    Args:
        chat_format: "auto", "chatml" or "raw", as configured.
        guards_results: quote what in tools' results looks like a step of the assistant; a request may say otherwise.
        off_loop: runs what is long for large requests.
        tool_format: the format of tools that the model learned.
    """

    tokenizer: Tokenizer
    defaults: GenerationDefaults
    chat_format: str = "auto"
    guards_results: bool = False
    off_loop: OffLoop = field(default_factory=OffLoop)
    tool_format: ToolFormat = tool_formats.REACT

    @property
    def speaks_chatml(self) -> bool:
        """Tells whether the model can chat."""
        return (self.defaults.chat_format if self.chat_format == "auto" else self.chat_format) == CHATML

    @property
    def default_stops(self) -> tuple[str, ...]:
        """Texts at which every reply ends: the checkpoint's stop words of several tokens.

        Control tokens in them have no text; those that end a reply end it by themselves.
        """
        decode = self.tokenizer.decode
        texts = (decode(ids) for ids in self.defaults.stop_sequences if not any(map(self.tokenizer.is_special, ids)))
        return tuple(text for text in texts if text)

    async def chat(self, chat: ChatRequest, *, window: int | None = None) -> ChatPrompt:
        """Returns what the model sees for a conversation.

        Args:
            chat: the conversation, its tools, and how it is to be continued.
            window: drop whole oldest turns until the prompt has at most this many tokens; None keeps all.

        Raises:
            InvalidRequestError: a base model, or a conversation that cannot be rendered.
        """
        if not self.speaks_chatml:
            raise InvalidRequestError(
                "This is a base model and does not chat: use /v1/completions, or start the server with"
                " --chat-format chatml.",
                param=chat.messages_param,
            )
        if chat.continue_final and chat.messages[-1].role != "assistant":
            raise InvalidRequestError(
                "'continue_final_message' needs a last message of role assistant.", param="continue_final_message"
            )
        num_calls = sum(len(message.calls) for message in chat.messages)
        if num_calls > MAX_CALLS:
            raise InvalidRequestError(
                f"A conversation may hold at most {MAX_CALLS} tool calls, not {num_calls}; leave out old turns.",
                param=chat.messages_param,
            )
        self._check_names(chat.calling)

        def render(kept: Sequence[Message]) -> ChatPrompt:
            rendered = self.tool_format.render(
                kept,
                chat.calling.specs,
                tool_choice=chat.calling.choice,
                open_turn=chat.open_turn,
                continue_final=chat.continue_final is not False,
            )
            return ChatPrompt(self._encode(rendered.segments), rendered)

        def work() -> ChatPrompt:
            turns = list(chat.messages)
            if self.guards_results if chat.guards_results is None else chat.guards_results:
                quote = self.tool_format.quote
                turns = [replace(t, content=quote(t.content)) if t.role == "tool" else t for t in turns]
            if window is not None:
                turns = self._newest_turns(turns, window, lambda some: len(render(some).ids))
            return render(turns)

        return await self.off_loop.run(work)

    def _check_names(self, calling: FunctionCalling) -> None:
        words = self.tool_format.reserved_words
        for tool in calling.tools:
            if tool.name.startswith(words):
                raise InvalidRequestError(
                    f"'{tool.where}.name' must not begin with one of the words that structure a reply:"
                    f" {', '.join(words)}",
                    param=f"{tool.where}.name",
                )

    def _encode(self, rendered: Sequence[Segment]) -> list[int]:
        return segments.encode(rendered, self.tokenizer.encode, self.tokenizer.special_id)

    def _newest_turns(
        self, turns: list[Message], window: int, count: Callable[[Sequence[Message]], int]
    ) -> list[Message]:
        """Drops oldest turns as the published chat() does, and then as many more as the context asks for."""
        if not any(turn.calls or turn.role == "tool" for turn in turns):
            turns = chatml.drop_oldest_turns(
                turns,
                max_window_size=self.defaults.max_window_size,
                count_tokens=lambda rendered: len(self._encode(rendered)),
            )
        return chatml.keep_newest_turns(turns, lambda kept: count(kept) <= window)

    def special_names(self, allowed: Literal["all"] | Sequence[str] | None, add_special_tokens: bool) -> frozenset[str]:
        """Returns the names of the control tokens that a text may hold as tokens.

        Args:
            allowed: names of some, or "all"; None goes by the next.
            add_special_tokens: all of them.

        Raises:
            InvalidRequestError: it names one that there is not.
        """
        known = self.tokenizer.special_names
        if allowed is None or allowed == "all":
            return known if allowed == "all" or add_special_tokens else frozenset()
        for name in allowed:
            if name not in known:
                raise InvalidRequestError(
                    f"'allowed_special' names {name[:100]!r}, which is no control token of this model; they are"
                    " <|endoftext|>, <|im_start|>, <|im_end|> and <|extra_0|> to <|extra_204|>.",
                    param="allowed_special",
                )
        return frozenset(allowed)

    async def texts(self, texts: Sequence[str], special_names: frozenset[str] = frozenset()) -> list[list[int]]:
        """Returns the ids of each text; one without any token starts where a document starts.

        Args:
            special_names: names of control tokens that are read as the tokens.
        """

        def encode(text: str) -> list[int]:
            if not special_names:
                return self.tokenizer.encode(text)
            return self.tokenizer.encode_with_special_tokens(text, special_names)

        start = self.tokenizer.endoftext_id
        return await self.off_loop.run(lambda: [encode(text) or [start] for text in texts])


def rendered_texts(chat: ChatRequest) -> Iterator[str]:
    """Yields the texts of a request that become its prompt."""
    for message in chat.messages:
        yield message.content
        for call in message.calls:
            yield from (call.name, call.arguments)
    if chat.calling.choice != "none":
        for tool in chat.calling.specs:
            yield from (tool.name_for_model, tool.description, tool.parameters_json, tool.args_format)


def check_ids(ids: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Refuses ids that the model does not have. Those of padding rows, which have no token, are allowed.

    Raises:
        InvalidRequestError: naming the first.
    """
    if ids and max(ids) >= vocab_size:
        bad = next(i for i in ids if i >= vocab_size)
        raise InvalidRequestError(f"There is no token {bad}: ids go from 0 to {vocab_size - 1}.", param=param)
