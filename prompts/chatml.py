"""The chat format of these models: turns between `<|im_start|>` and `<|im_end|>`.

It exists to write conversations of plain turns as segments, and to drop the oldest of them when
they do not fit. It must not know tools (react/ folds those into plain turns first) nor any
vocabulary: where tokens are counted, the caller brings the counter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompts.messages import Message
from prompts.segments import Segment, Special, Text

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
DEFAULT_SYSTEM = "You are a helpful assistant."

# What `render` does, for programs that render prompts themselves, in the form that tokenizers carry it in.
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

    Contents are written as they are. (The published `chat()` does so; the published API server strips
    them first, which `react.render`, the chat endpoint's way in, does by `Message.stripped`.) Every
    message is a turn of its own, wherever it stands; so is a system message in the middle.

    Args:
        messages: roles system, user and assistant, without calls; in any order, possibly none.
        default_system: heads the prompt if the first message is not a system message; None for nothing.
        open_turn: leave the prompt open for the assistant to speak.
        continue_final: where `open_turn`, a last message of the assistant is what it goes on from, and
            no new turn opens.

    Raises:
        ValueError: a tool message or a call, which plain turns cannot hold.
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
    """Keeps whole newest turns while system and kept turns are below `max_window_size` tokens.

    The rule of the published `chat()`, to the token: the newest turn (the question to answer) is always
    kept and, strange as it is, not counted. To fit a prompt into a context use `keep_newest_turns`.

    Args:
        messages: plain turns, as for `render`.
        max_window_size: as in generation_config.json.
        count_tokens: segments -> number of tokens.
        default_system: as for `render`.

    Returns:
        The messages without the oldest turns. System messages are never dropped.
    """

    def fits(kept: Sequence[Message]) -> bool:
        history = list(kept[: _start_of_newest_turn(kept)])
        segments = render(history, default_system=default_system, open_turn=False)
        return count_tokens(segments) < max_window_size

    return keep_newest_turns(messages, fits)


def keep_newest_turns(messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> list[Message]:
    """Drops as few whole oldest turns as make the conversation fit.

    A turn is a run of user messages with all that follows it up to the next one: answers, calls and
    their results stay together. System messages are instructions, not turns, and always stay.

    Args:
        messages: any conversation, also with tools.
        fits: whether a conversation may stay as it is; dropping more must never make it worse. It is
            asked O(log turns) times.

    Returns:
        The messages kept. The newest turn stays even if it does not fit: the caller reports that.
    """
    starts = _starts_of_turns(messages)
    # What stands before the first user message belongs to the oldest turn.
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
    """Indices of user messages that open a turn: those not right behind another user message."""
    starts = []
    previous = ""
    for index, message in enumerate(messages):
        if message.role == "user" and previous != "user":
            starts.append(index)
        if message.role != "system":
            previous = message.role
    return starts


def _start_of_newest_turn(messages: Sequence[Message]) -> int:
    starts = _starts_of_turns(messages)
    return starts[-1] if starts else len(messages)
