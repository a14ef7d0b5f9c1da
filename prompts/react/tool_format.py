"""The ReAct format as a `ToolFormat`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from prompts.messages import Message, ToolSpec
from prompts.react.grammar import tool_call_grammar
from prompts.react.line_format import LABELS, Place, quote_steps
from prompts.react.parser import ReActParser
from prompts.react.render import render
from prompts.schemas.schema import ToolInput
from prompts.tool_format import RenderedPrompt, ToolChoice


class ReActFormat:
    """Thought, Action, Action Input, Observation and Final Answer, as the first generation learned it."""

    reserved_words = LABELS

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        tool_choice: ToolChoice = "auto",
        open_turn: bool = True,
        continue_final: bool = True,
    ) -> RenderedPrompt:
        """Writes a conversation, as `prompts.react.render` does."""
        return render(messages, tools, tool_choice=tool_choice, open_turn=open_turn, continue_final=continue_final)

    def quote(self, result: str) -> str:
        """Returns a tool's result in which no line passes for a step of the assistant."""
        return quote_steps(result)

    def grammar(
        self, tools: Sequence[tuple[str, ToolInput]], prompt: RenderedPrompt, *, answer: str | None = None
    ) -> str:
        """Returns the grammar of a reply that may call tools."""
        return tool_call_grammar(tools, place=cast(Place, prompt.place), answer=answer)

    def parser(self, opening: str, tool_names: Sequence[str], text_tools: Collection[str] = ()) -> ReActParser:
        """Returns a reader for a reply."""
        return ReActParser(opening, tool_names, text_tools)
