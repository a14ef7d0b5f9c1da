"""The formats of tools there are: the one place that knows them by name."""

from __future__ import annotations

from prompts.react.tool_format import ReActFormat
from prompts.tool_format import ToolFormat

REACT: ToolFormat = ReActFormat()
