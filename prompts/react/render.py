"""Renders tools, calls and results in the ReAct format these models learned, folded into plain ChatML turns.

It also opens the assistant's turn so that a call must follow, if the client demands one. It knows neither the wire's
tool_choice objects (the server maps them) nor tokens. parser.py reads the reply.

Conversations that the published API server accepts are rendered as it renders them. Those that it refuses are
rendered too: messages keep their places in any order; a tool result without an assistant turn before it opens one;
results of several calls follow their own calls, as if the calls had been made one after another
(prompts/call_results.py); an unanswered call at the very end gets an empty Observation; and if there are results but
no tools are offered any more, the turn continues with the final answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from prompts import chatml
from prompts.call_results import Step, in_steps
from prompts.messages import Message, ToolSpec, strip_content
from prompts.react.line_format import ACTION, FINAL_ANSWER, OBSERVATION, THOUGHT, Place, name_to_input
from prompts.tool_format import Named, RenderedPrompt, ToolChoice

_ANSWER_STEP = f"{THOUGHT} I now know the final answer.\n{FINAL_ANSWER}"

# The lead of a question. With an empty message it ends the turn, and its trailing space is a token that must stay.
_EMPTY_QUESTION = "\n\nQuestion: "

_INSTRUCTION = """Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""


@dataclass(slots=True)
class _Turn:
    """A turn being built; only assistant turns grow."""

    role: Literal["system", "user", "assistant"]
    lines: list[str] = field(default_factory=list)
    ends_in_step: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @text.setter
    def text(self, text: str) -> None:
        self.lines = [text] if text else []

    def add(self, text: str, *, is_step: bool = False) -> None:
        if self.lines:
            self.lines.append(text)
        else:
            self.text = strip_content(text)
        self.ends_in_step = is_step


def render(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    *,
    tool_choice: ToolChoice = "auto",
    default_system: str | None = chatml.DEFAULT_SYSTEM,
    open_turn: bool = True,
    continue_final: bool = True,
) -> RenderedPrompt:
    """Renders a conversation, with or without tools. Every chat request is rendered here.

    Contents are stripped as in the published API server (`Message.stripped`). The instruction that lists the tools is
    placed before the last user message that the assistant has answered, or else before the newest one. With
    `tool_choice="none"` it is left out; calls and results in the history stay, as text.

    Args:
        messages: any roles in any order.
        tools: the tools that the prompt describes.
        tool_choice: "required" and `Named` end the prompt at a point where a call must follow.
        open_turn: end with an open assistant turn; False renders the conversation only.
        continue_final: the reply continues a final assistant message. If a call is forced, this message is the
            thought before the call.

    Raises:
        ValueError: a call is forced without tools.
    """
    can_call = bool(tools) and tool_choice != "none"
    forced = tool_choice == "required" or isinstance(tool_choice, Named)
    if forced and not tools:
        raise ValueError("a call cannot be forced without tools")
    last = messages[-1] if messages and open_turn else None
    continued = continue_final and last is not None and last.role == "assistant" and not last.calls

    turns = _turns(messages, answers_are_steps=can_call, last_is_thought=continued and forced)
    if can_call:
        _add_instruction(turns, tools)
    place, opening = _open(turns, last, tool_choice, can_call, continued) if open_turn else ("text", "")
    # The published server strips all turns again when it continues a text, but not when it answers a user.
    keeps_space = last is not None and last.role == "user"
    plain = [Message(turn.role, _stripped(turn.text, keeps_space=keeps_space)) for turn in turns]
    return RenderedPrompt(
        chatml.render(plain, default_system=default_system, open_turn=open_turn),
        opening,
        place,
        can_call=place not in ("answer", "text"),
        is_plain=place == "text",
    )


def _stripped(text: str, *, keeps_space: bool) -> str:
    """Strips a turn's text, but keeps the space after the `Question:` of an empty message."""
    return text if keeps_space and text.endswith(_EMPTY_QUESTION) else strip_content(text)


def forced_opening(tool_choice: ToolChoice) -> str:
    """Returns the text after `Thought:` that forces the call which the client demands; empty for "auto".

    It looks like a step without a thought in the history (a space and a newline), which the model knows. The model
    continues with the tool's name or with the arguments.
    """
    if isinstance(tool_choice, Named):
        return f" \n{ACTION}{name_to_input(tool_choice.name)}"
    if tool_choice == "required":
        return f" \n{ACTION}"
    return ""


def _open(
    turns: list[_Turn], last: Message | None, tool_choice: ToolChoice, can_call: bool, continued: bool
) -> tuple[Place, str]:
    """Opens the last turn for the reply, with the beginning of its next step if there must be one.

    Returns:
        The place where the prompt ends, and the step so far, without the conversation's own text.
    """
    forced = forced_opening(tool_choice)
    place: Place = "thought"
    if forced:
        place = "action" if tool_choice == "required" else "arguments"
    if continued and last is not None:
        if not forced:
            return ("answer", f"{_ANSWER_STEP} {last.stripped().content}") if can_call else ("text", "")
        # The continued text is the thought, up to the end of its line.
        turns[-1].text = turns[-1].text.rstrip() + forced.lstrip(" ")
        return place, THOUGHT + forced
    if last is not None and last.calls:
        turns[-1].add(f"{OBSERVATION} ", is_step=True)
    after_step = bool(turns) and turns[-1].ends_in_step
    if not after_step:
        turns.append(_Turn("assistant"))
        if not forced:
            return ("turn" if can_call else "text"), ""
    elif not can_call:
        turns[-1].add(_ANSWER_STEP)
        return "answer", _ANSWER_STEP
    turns[-1].add(THOUGHT + forced)
    return place, THOUGHT + forced


def _turns(messages: Sequence[Message], *, answers_are_steps: bool, last_is_thought: bool) -> list[_Turn]:
    """Folds messages into turns. Consecutive messages of the assistant and its tools are one turn."""
    turns: list[_Turn] = []
    said = in_steps([message.stripped() for message in messages])
    for number, message in enumerate(said, start=1):
        if isinstance(message, Message) and (message.role == "system" or message.role == "user"):
            turns.append(_Turn(message.role, [message.content]))
            continue
        if not turns or turns[-1].role != "assistant":
            turns.append(_Turn("assistant"))
        turn = turns[-1]
        if isinstance(message, Step):
            call = message.call
            thought = _as_thought(message.thought)
            turn.add(f"{thought}\n{ACTION}{name_to_input(call.name)} {call.readable_arguments()}", is_step=True)
            for result in message.results:
                turn.add(f"{OBSERVATION} {result}", is_step=True)
        elif message.role == "tool":
            turn.add(f"{OBSERVATION} {message.content}", is_step=True)
        elif last_is_thought and number == len(said):
            turn.add(_as_thought(message.content))
        elif answers_are_steps:
            turn.add(f"{_ANSWER_STEP} {message.content}")
        else:
            turn.add(message.content)
    return turns


def _as_thought(content: str) -> str:
    return content if content.startswith(THOUGHT) else f"{THOUGHT} {content}"


def _add_instruction(turns: list[_Turn], tools: Sequence[ToolSpec]) -> None:
    """Puts the instruction before the question it belongs to; without a question it becomes a turn of its own."""
    instruction = strip_content(
        _INSTRUCTION.format(
            tools="\n\n".join(_tool_line(tool) for tool in tools),
            names=", ".join(tool.name_for_model for tool in tools),
        )
    )
    spoken = [turn for turn in turns if turn.role != "system"]
    answered = [a for a, b in itertools.pairwise(spoken) if a.role == "user" and b.role == "assistant"]
    asked = answered or [turn for turn in spoken if turn.role == "user"]
    if asked:
        question = asked[-1]
        question.text = f"{instruction}{_EMPTY_QUESTION}{question.text}"
    else:
        num_systems = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
        turns.insert(num_systems, _Turn("user", [instruction]))


def _tool_line(tool: ToolSpec) -> str:
    return (
        f"{tool.name_for_model}: Call this tool to interact with the {tool.name_for_human} API. "
        f"What is the {tool.name_for_human} API useful for? {tool.description} Parameters: {tool.parameters_json}"
        f"{tool.args_format and ' ' + tool.args_format}"
    )
