"""ChatML, the chat format of these models: turns between `<|im_start|>` and `<|im_end|>`.

Renders conversations of plain turns as segments, and drops the oldest turns when they do not fit. It knows no tools
(react/ folds those into plain turns first) and no vocabulary: callers pass in a token counter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompts.messages import Message
from prompts.segments import Segment, Special, Text

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
DEFAULT_SYSTEM = "You are a helpful assistant."

# The same as `render`, as a Jinja template for tokenizer files and for programs that render prompts themselves.
JINJA_TEMPLATE = (
    "{% if not messages or messages[0]['role'] != 'system' %}"
    f"{IM_START}system\n{DEFAULT_SYSTEM}{IM_END}\n"
    "{% endif %}"
    "{% for message in messages %}"
    f"{IM_START}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{IM_END}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{IM_START}assistant\n{{% endif %}}"
)


def render(
    messages: Sequence[Message],
    *,
    default_system: str | None = DEFAULT_SYSTEM,
    open_turn: bool = True,
    continue_final: bool = True,
) -> list[Segment]:
    """Renders a conversation of plain turns.

    Contents are not stripped here, as in the published `chat()`. The published API server strips them first;
    `react.render`, which serves chat requests, does so too (`Message.stripped`). Every message becomes a turn, system
    messages in the middle too.

    Args:
        messages: system, user and assistant messages without calls, in any order; may be empty.
        default_system: system prompt to insert if the first message is not a system message; None inserts nothing.
        open_turn: end the prompt with an open assistant turn, for generation.
        continue_final: with `open_turn`, the reply continues a final assistant message instead of opening a new turn.

    Raises:
        ValueError: there is a tool message or a call, which plain turns cannot hold.
    """
    for message in messages:
        if message.role == "tool" or message.calls:
            raise ValueError("plain ChatML has no tool messages or calls; render this conversation with prompts.react")
    turns = list(messages)
    if default_system is not None and (not turns or turns[0].role != "system"):
        turns.insert(0, Message("system", default_system))
    continued = open_turn and continue_final and bool(turns) and turns[-1].role == "assistant"

    segments: list[Segment] = []
    for turn in turns:
        if segments:
            segments.append(Text("\n"))
        segments += [Special(IM_START), Text(turn.role), Text("\n"), Text(turn.content), Special(IM_END)]
    if continued:
        segments.pop()
    elif open_turn:
        if segments:
            segments.append(Text("\n"))
        segments += [Special(IM_START), Text("assistant"), Text("\n")]
    return segments


def drop_oldest_turns(
    messages: Sequence[Message],
    *,
    max_window_size: int,
    count_tokens: Callable[[Sequence[Segment]], int],
    default_system: str | None = DEFAULT_SYSTEM,
) -> list[Message]:
    """Drops the oldest turns until system messages and kept turns are below `max_window_size` tokens.

    This is the rule of the published `chat()`, to the token: the newest turn (the question to answer) is always kept
    and, strange as it is, not counted. To fit a prompt into a context use `keep_newest_turns`.

    Args:
        messages: plain turns, as for `render`.
        max_window_size: in tokens; the field of generation_config.json.
        count_tokens: returns the number of tokens of some segments.
        default_system: as for `render`.

    Returns:
        The messages without the oldest turns. System messages are never dropped.
    """

    def fits(kept: Sequence[Message]) -> bool:
        starts = _starts_of_turns(kept)
        history = kept[: starts[-1]] if starts else kept
        segments = render(history, default_system=default_system, open_turn=False)
        return count_tokens(segments) < max_window_size

    return keep_newest_turns(messages, fits)


def keep_newest_turns(messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> list[Message]:
    """Drops whole turns, oldest first, until the conversation fits.

    A turn is a run of user messages and everything up to the next user message, so answers, calls and their results
    stay together. System messages always stay.

    Args:
        messages: any conversation, with or without tools.
        fits: tells whether a conversation fits. If it does, any shorter one must fit too: this is a binary search.

    Returns:
        The kept messages. The newest turn is kept even if it does not fit; the caller reports that.
    """
    starts = _starts_of_turns(messages)
    # Messages before the first user message belong to the oldest turn.
    cuts = [0, *starts[1:]]

    def without_oldest(num_turns: int) -> list[Message]:
        cut = cuts[num_turns]
        return [m for i, m in enumerate(messages) if i >= cut or m.role == "system"]

    low, high = 0, len(cuts) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(without_oldest(middle)):
            high = middle
        else:
            low = middle + 1
    return without_oldest(low)


def _starts_of_turns(messages: Sequence[Message]) -> list[int]:
    """Returns the indices of user messages that open a turn: those that do not follow another user message."""
    starts = []
    previous = ""
    for index, message in enumerate(messages):
        if message.role == "user" and previous != "user":
            starts.append(index)
        if message.role != "system":
            previous = message.role
    return starts
