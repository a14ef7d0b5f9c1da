"""The ReAct format as a `ToolFormat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from prompts.react.grammar import tool_call_grammar
from prompts.react.line_format import LABELS, Place, quote_steps
from prompts.react.parser import ReActParser
from prompts.react.render import render
from prompts.schemas.schema import ToolInput
from prompts.tool_format import RenderedPrompt


class ReActFormat:
    """Thought, Action, Action Input, Observation and Final Answer, as the first generation learned them."""

    reserved_words = LABELS
    render = staticmethod(render)
    quote = staticmethod(quote_steps)
    parser = ReActParser

    def grammar(
        self, tools: Sequence[tuple[str, ToolInput]], prompt: RenderedPrompt, *, answer: str | None = None
    ) -> str:
        """Returns the grammar of a reply that may call tools."""
        return tool_call_grammar(tools, place=cast(Place, prompt.place), answer=answer)
