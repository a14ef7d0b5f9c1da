"""The labels of the ReAct format, and the rule for where they count as labels.

Both parser.py and grammar.py follow this rule:

- A turn is scaffolding from its first word, or not at all. It is scaffolding if the server opened it with a label, or
  if it begins (after whitespace) with one of `openings`: a thought, or a call of an offered tool.
- In scaffolding, labels count at the start of a line. `Action:` and `Final Answer:` end a thought, `Action Input:`
  ends a tool's name, and any label ends the arguments of a call. Only `Observation:` ends text or code, which some
  tools take instead of JSON, because any other line may be part of it.
- After `Final Answer:`, in a turn that is not scaffolding, and where no tool is offered, labels are ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

THOUGHT = "Thought:"
ACTION = "Action:"
ACTION_INPUT = "Action Input:"
OBSERVATION = "Observation:"
FINAL_ANSWER = "Final Answer:"
# No label is a prefix of another, so each is recognised at its colon.
LABELS = (THOUGHT, ACTION, ACTION_INPUT, OBSERVATION, FINAL_ANSWER)

# What a model would take for a label at the start of a line: any case, after blanks, ASCII or full-width colon.
_STEP = re.compile(
    r"(^|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])([ \t\xa0\u3000]*)"
    r"(?=(?:question|thought|action|action[ ]input|observation|final[ ]answer)[ \t]{0,9}[:\uff1a])",
    re.IGNORECASE,
)

# Whitespace that may precede the first word of a turn.
SPACE = " \t\r\n"

# Where a prompt ends, which decides what the reply can be: a "turn" of either kind; the rest of a "thought"; a tool's
# name after `Action:` ("action"); "arguments" after `Action Input:`; the text after `Final Answer:` ("answer"); or
# plain "text".
Place = Literal["turn", "thought", "action", "arguments", "answer", "text"]


def name_to_input(name: str) -> str:
    """Returns the text between `Action:` and the arguments of a call."""
    return f" {name}\n{ACTION_INPUT}"


def call_opening(name: str) -> str:
    """Returns the beginning of a turn that calls a tool without a thought."""
    return ACTION + name_to_input(name)


def quote_steps(text: str) -> str:
    """Quotes the lines of a tool's result that could pass for steps of the assistant, in whose turn it is rendered.

    They are quoted as in a mail: `> Final Answer: ...`. Nothing else changes.
    """
    return _STEP.sub(r"\1\2> ", text)


def openings(tool_names: Iterable[str]) -> tuple[str, ...]:
    """Returns what scaffolding can begin with, if these tools may be called."""
    return (THOUGHT, *map(call_opening, tool_names))
