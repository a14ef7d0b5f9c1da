"""The words of the ReAct format, and the one rule of where they mean something.

The rule, by which the reader of replies (parser.py) and the grammar of replies (grammar.py) decide:

- A turn is scaffolding from its first word on, or not at all. It is if the server opened it so, or if after white
  space it begins with one of `openings`: a thought, or a call of a tool that is offered, as the model was shown calls.
- In scaffolding a label counts at the very start of a line: `Action:` and `Final Answer:` end a thought, `Action
  Input:` a tool's name, and any label the arguments of a call; the text or code that some tools take instead of
  JSON only `Observation:` ends, for any other line may be part of it.
- After `Final Answer:`, and in a turn that is no scaffolding, every label is text. So it is where no tool is offered.
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
# None is the beginning of another: a label is known as soon as its colon is there.
LABELS = (THOUGHT, ACTION, ACTION_INPUT, OBSERVATION, FINAL_ANSWER)

# A word of the format at the start of a line, as a model would read it: in any case, after blanks, with either colon.
_STEP = re.compile(
    r"(^|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])([ \t\xa0\u3000]*)"
    r"(?=(?:question|thought|action|action[ ]input|observation|final[ ]answer)[ \t]{0,9}[:\uff1a])",
    re.IGNORECASE,
)

# What may stand in front of a turn's first word.
SPACE = " \t\r\n"

# Where a prompt leaves off, and so what the reply can be: a "turn" of either kind; the rest of a "thought"; a tool's
# name after `Action:` ("action"); "arguments" after `Action Input:`; the text after `Final Answer:` ("answer"); or
# "text" from the first character on.
Place = Literal["turn", "thought", "action", "arguments", "answer", "text"]


def name_to_input(name: str) -> str:
    """What stands between `Action:` and the arguments of a call."""
    return f" {name}\n{ACTION_INPUT}"


def call_opening(name: str) -> str:
    """What a turn without a thought begins with that calls a tool."""
    return ACTION + name_to_input(name)


def quote_steps(text: str) -> str:
    """Returns a tool's result in which no line passes for a step of the assistant, in whose turn it stands.

    What looks like one is quoted, as in a mail: `> Final Answer: ...`. Nothing else changes.
    """
    return _STEP.sub(r"\1\2> ", text)


def openings(tool_names: Iterable[str]) -> tuple[str, ...]:
    """What a turn that is scaffolding begins with, where these tools may be called."""
    return (THOUGHT, *map(call_opening, tool_names))
