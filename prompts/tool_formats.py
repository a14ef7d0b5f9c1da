"""The tool formats that exist. No other file outside prompts/ names one."""

from __future__ import annotations

from prompts.react.tool_format import ReActFormat
from prompts.tool_format import ToolFormat

REACT: ToolFormat = ReActFormat()
