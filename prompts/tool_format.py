"""What a format of tools has to do: write a conversation with tools, hold a reply to it, and read the reply back.

Checkpoints learned different ones. A server knows this interface and no format; tool_formats.py has those there are.
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
    """A tool choice: this tool must be called."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | Named


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A rendered conversation, and how the reply to it is to be read.

    Attributes:
        segments: the prompt.
        opening: what stands in the prompt already of the step that the model goes on with, for the format's `parser`
            and `grammar`. Besides an answer that is continued it is scaffolding only, whatever users and tools sent.
        place: where the prompt leaves off, in the format's own words.
        can_call: the reply may call a tool.
        is_plain: the reply is shown as it is, and no parser reads it.
    """

    segments: list[Segment]
    opening: str = ""
    place: str = ""
    can_call: bool = False
    is_plain: bool = True


class ReplyParser(Protocol):
    """Reads one reply while it is generated."""

    @property
    def done(self) -> bool:
        """Whether nothing that follows can matter, so that generation may end."""

    @property
    def unfinished_call(self) -> bool:
        """After `flush`: whether the reply broke off in a call."""

    def push(self, text: str) -> list[Event]:
        """Takes the next piece of the reply and returns what is known by it."""

    def flush(self, *, is_cut: bool = False) -> list[Event]:
        """Ends the reply and returns what was held back.

        Args:
            is_cut: the model would have gone on.
        """


class ToolFormat(Protocol):
    """One way in which models are told of tools, and call them."""

    @property
    def reserved_words(self) -> tuple[str, ...]:
        """What the name of a tool must not begin with."""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        tool_choice: ToolChoice = "auto",
        open_turn: bool = True,
        continue_final: bool = True,
    ) -> RenderedPrompt:
        """Writes a conversation, with or without tools.

        Args:
            messages: of any roles, in any order.
            tools: that the model is told about.
            tool_choice: "required" and `Named` open the turn where a call must follow.
            open_turn: leave the prompt open for the assistant; False to look at a conversation only.
            continue_final: if the last message is the assistant's, the reply goes on from its text.
        """

    def quote(self, result: str) -> str:
        """Returns a tool's result in which nothing passes for words of the assistant."""

    def grammar(
        self, tools: Sequence[tuple[str, ToolInput]], prompt: RenderedPrompt, *, answer: str | None = None
    ) -> str:
        """Returns the grammar of a reply that may call tools.

        Args:
            tools: (name, its input) of each that may be called; at least one.
            prompt: the reply is to; its `can_call` is true.
            answer: rule body that an answer must match; None leaves it free.
        """

    def parser(self, opening: str, tool_names: Sequence[str], text_tools: Collection[str] = ()) -> ReplyParser:
        """Returns a reader for a reply.

        Args:
            tool_names: of the tools that may be called.
            text_tools: those among them whose input is text or code, not JSON.
        """
