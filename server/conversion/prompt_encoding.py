"""From what a request says to the token ids a model sees.

Text from a request only ever becomes ordinary tokens here, unless a completion opts in to control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from model.contract.errors import InvalidRequestError
from model.contract.tokenizer import Tokenizer
from prompts import chatml, segments
from prompts.messages import Message, Role
from prompts.react import render as react
from prompts.react.line_format import quote_steps
from prompts.react.render import ReActPrompt
from prompts.segments import Segment
from server.conversion.defaults import CHATML, GenerationDefaults
from server.conversion.tools import FunctionCalling, match_results, read_calls
from server.off_loop import OffLoop
from server.wire.requests import ChatMessage, CompletionRequest, TokenizeRequest

# Of a conversation; each is read, matched with its results and rendered.
MAX_CALLS = 4096

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the model sees it.

    Attributes:
        ids: the prompt.
        react: how it was rendered, and how the reply is to be read.
    """

    ids: list[int]
    react: ReActPrompt


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Encodes prompts for one checkpoint.

    Args:
        tokenizer: of the checkpoint.
        defaults: of the checkpoint.
        chat_format: "auto", "chatml" or "raw", as configured.
        guards_results: quote what in tools' results looks like a step of the assistant, unless told otherwise.
        off_loop: where large requests are worked on.
    """

    tokenizer: Tokenizer
    defaults: GenerationDefaults
    chat_format: str = "auto"
    guards_results: bool = False
    off_loop: OffLoop = field(default_factory=OffLoop)

    @property
    def speaks_chatml(self) -> bool:
        """Whether the model can chat."""
        return (self.defaults.chat_format if self.chat_format == "auto" else self.chat_format) == CHATML

    @property
    def default_stops(self) -> tuple[str, ...]:
        """Texts at which every reply ends: the checkpoint's stop words of several tokens.

        Control tokens in them have no text; those that end a reply end it by themselves.
        """
        decode = self.tokenizer.decode
        texts = (decode(ids) for ids in self.defaults.stop_sequences if not any(map(self.tokenizer.is_special, ids)))
        return tuple(text for text in texts if text)

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        calling: FunctionCalling,
        *,
        continue_final: bool | None = None,
        open_turn: bool = True,
        window: int | None = None,
        guards_results: bool | None = None,
    ) -> ChatPrompt:
        """Returns what the model sees for a conversation.

        Args:
            messages: at least one.
            calling: tools, and the choice among them.
            continue_final: whether a last message of the assistant is continued; None is yes.
            open_turn: end with the assistant's turn open.
            window: drop whole oldest turns until the prompt has at most this many tokens; None keeps all.
            guards_results: quote what in tools' results looks like a step; None does as configured.

        Raises:
            InvalidRequestError: a base model, or a message that cannot be rendered.
        """
        if not self.speaks_chatml:
            raise InvalidRequestError(
                "This is a base model and does not chat: use /v1/completions, or start the server with"
                " --chat-format chatml.",
                param="messages",
            )
        if continue_final and messages[-1].role != "assistant":
            raise InvalidRequestError(
                "'continue_final_message' needs a last message of role assistant.", param="continue_final_message"
            )

        def render(kept: Sequence[Message]) -> ChatPrompt:
            prompt = react.render(
                kept,
                calling.tools,
                tool_choice=calling.choice,
                open_turn=open_turn,
                continue_final=continue_final is not False,
            )
            return ChatPrompt(self._encode(prompt.segments), prompt)

        num_calls = sum(len(message.tool_calls or ()) for message in messages)
        if num_calls > MAX_CALLS:
            raise InvalidRequestError(
                f"A conversation may hold at most {MAX_CALLS} tool calls, not {num_calls}; leave out old turns.",
                param="messages",
            )

        def work() -> ChatPrompt:
            turns = [read_message(message, index) for index, message in enumerate(messages)]
            turns = match_results(turns, messages, must_be_answered=open_turn)
            if self.guards_results if guards_results is None else guards_results:
                turns = [
                    replace(turn, content=quote_steps(turn.content)) if turn.role == "tool" else turn for turn in turns
                ]
            if window is not None:
                turns = self._newest_turns(turns, window, lambda some: len(render(some).ids))
            return render(turns)

        return await self.off_loop.run(work)

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

    def special_names(self, request: CompletionRequest | TokenizeRequest) -> frozenset[str]:
        """Names of the control tokens that a request's text may hold as tokens.

        Raises:
            InvalidRequestError: it names one that there is not.
        """
        known = self.tokenizer.special_names
        allowed = request.allowed_special
        if isinstance(request, TokenizeRequest) and allowed is None and request.add_special_tokens is False:
            # Evaluation harnesses learn the id of the end token so: a prompt that is nothing but its name.
            return known & {request.prompt or ""}
        if allowed is None or allowed == "all":
            return known if allowed == "all" or request.add_special_tokens else frozenset()
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
            texts: to encode.
            special_names: of control tokens that stand for the tokens.
        """

        def encode(text: str) -> list[int]:
            if not special_names:
                return self.tokenizer.encode(text)
            return self.tokenizer.encode_with_special_tokens(text, special_names)

        start = self.tokenizer.endoftext_id
        return await self.off_loop.run(lambda: [encode(text) or [start] for text in texts])


def rendered_texts(messages: Sequence[ChatMessage], calling: FunctionCalling) -> Iterator[str]:
    """Yields the texts of a request that become its prompt."""
    for message in messages:
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text or part.refusal or "" for part in message.content or ())
        for call in message.tool_calls or ():
            if call.function is not None:
                yield from (call.function.name, call.function.arguments or "")
            if call.custom is not None:
                yield from (call.custom.name, call.custom.input or "")
    if calling.choice != "none":
        for tool in calling.tools:
            yield from (tool.name_for_model, tool.description, tool.parameters_json, tool.args_format)


def read_message(message: ChatMessage, index: int) -> Message:
    """Reads one message of a request.

    Raises:
        InvalidRequestError: content that is missing or is not text.
    """
    where = f"messages[{index}]"
    content = message.content
    if content is None:
        if message.role != "assistant" or not (message.tool_calls or message.function_call):
            raise InvalidRequestError(
                f"'{where}.content' is missing: the {message.role} message needs a text or a list of text parts.",
                param=f"{where}.content",
            )
        content = ""
    if not isinstance(content, str):
        parts = []
        for number, part in enumerate(content):
            text = part.text if part.type in ("text", "input_text", "output_text") else None
            if part.type == "refusal":
                text = part.refusal
            if text is None:
                raise InvalidRequestError(
                    f"'{where}.content[{number}]' of type {part.type[:40]!r} cannot be read: these models read text"
                    ' only; send parts of the form {"type": "text", "text": "..."}.',
                    param=f"{where}.content[{number}]",
                )
            parts.append(text)
        content = "\n".join(parts)
    calls = read_calls(message, index)
    return Message(_ROLES[message.role], content, name=message.name, calls=calls, tool_call_id=message.tool_call_id)


def check_ids(ids: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Refuses ids that the model does not have. Those of padding rows, which have no token, are allowed.

    Raises:
        InvalidRequestError: naming the first.
    """
    if ids and max(ids) >= vocab_size:
        bad = next(i for i in ids if i >= vocab_size)
        raise InvalidRequestError(f"There is no token {bad}: ids go from 0 to {vocab_size - 1}.", param=param)
