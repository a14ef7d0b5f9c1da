"""The interface of a tool format: renders conversations with tools, constrains replies, and parses them.

Checkpoints were trained on different formats. The server knows only this interface; tool_formats.py lists the formats.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prompts.messages import Message, ToolSpec
from prompts.reply_events import Event
from prompts.schemas.schema import ToolInput
from prompts.segments import Segment


@dataclass(frozen=True, slots=True)
class Named:
    """The tool choice that forces a call of one tool."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | Named


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A rendered conversation, and how to parse the reply to it.

    Attributes:
        opening: the beginning of the model's next step, if the prompt already contains it; for the format's `parser`.
            Apart from an answer that is continued, it is scaffolding and never text from users or tools.
        place: where the prompt ends, in the format's own terms; for the format's `grammar`.
        can_call: whether the reply may call a tool.
        is_plain: the reply is shown as it is, without parsing.
    """

    segments: list[Segment]
    opening: str = ""
    place: str = ""
    can_call: bool = False
    is_plain: bool = True


class ReplyParser(Protocol):
    """Parses one reply while it is generated."""

    @property
    def done(self) -> bool:
        """Whether the rest of the reply does not matter, so that generation may end."""

    @property
    def unfinished_call(self) -> bool:
        """After `flush`: whether the reply ended in the middle of a call."""

    def push(self, text: str) -> list[Event]:
        """Parses the next piece of the reply and returns the events that are certain now."""

    def flush(self, *, is_cut: bool = False) -> list[Event]:
        """Ends the reply and returns the events that were held back.

        Args:
            is_cut: the reply was cut off (by its token limit); the model would have continued.
        """


class ToolFormat(Protocol):
    """A way to present tools to a model, and for the model to call them."""

    @property
    def reserved_words(self) -> tuple[str, ...]:
        """Words that no tool name may begin with."""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        tool_choice: ToolChoice = "auto",
        open_turn: bool = True,
        continue_final: bool = True,
    ) -> RenderedPrompt:
        """Renders a conversation, with or without tools.

        Args:
            messages: any roles in any order.
            tools: the tools that the prompt describes.
            tool_choice: "required" and `Named` end the prompt at a point where a call must follow.
            open_turn: end with an open assistant turn; False renders the conversation only.
            continue_final: the reply continues a final assistant message.
        """

    def quote(self, result: str) -> str:
        """Quotes whatever in a tool's result could pass for a step of the assistant."""

    def grammar(
        self, tools: Sequence[tuple[str, ToolInput]], prompt: RenderedPrompt, *, answer: str | None = None
    ) -> str:
        """Returns the grammar of a reply that may call tools.

        Args:
            tools: name and input of each callable tool; at least one.
            prompt: the prompt of the reply; its `can_call` must be true.
            answer: grammar rule body that an answer must match; None leaves answers free.
        """

    def parser(self, opening: str, tool_names: Sequence[str], text_tools: Collection[str] = ()) -> ReplyParser:
        """Returns a parser for one reply.

        Args:
            opening: see `RenderedPrompt.opening`.
            tool_names: the callable tools.
            text_tools: those whose input is text or code, not JSON.
        """
