"""Function calling as these models learned it: the ReAct format, folded into plain ChatML turns.

It exists to write tools, calls and their results into the prompt, and to open the assistant's turn so
that a call must follow where the client demands one. It must not know the wire's tool_choice objects
(the server maps them) nor tokens. How a reply is read back is parser.py.

What the published API server accepts is rendered as it renders it. What it refuses is rendered too:
messages keep their places in any order; a tool's result with no assistant's turn before it opens one;
the results of several calls stand each behind its own call, as if the calls had been made one after the
other (prompts/call_results.py); a call at the very end that nobody answered gets an empty Observation; and where
results are at hand but no tool is offered any more, the turn goes on with the final answer.
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

# What an empty message becomes; its space is one token.
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
    """A turn in the making; only an assistant's turn grows."""

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
    """Renders a conversation with or without tools: the way in for every chat request.

    Contents are stripped as the published API server does it (`Message.stripped`). The instruction that
    lists the tools stands before the last user message that the assistant has answered, or else before
    the newest one. With `tool_choice="none"` it is left out, while calls and results in the history
    stay, as text.

    Args:
        messages: of any roles, in any order.
        tools: that the model is told about.
        tool_choice: "required" and `Named` open the turn where a call must follow.
        default_system: as for `chatml.render`.
        open_turn: leave the prompt open for the assistant; False to look at a conversation only.
        continue_final: if the last message is the assistant's, the reply goes on from its (stripped)
            text. Where a call is forced, this text is the thought before it.

    Raises:
        ValueError: a call is forced and there are no tools.
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
    # The published server strips all turns once more where it continues a text, but not where it answers a user.
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
    """A turn's text without space around it, but for that behind the `Question:` of an empty message."""
    return text if keeps_space and text.endswith(_EMPTY_QUESTION) else strip_content(text)


def forced_opening(tool_choice: ToolChoice) -> str:
    """What follows `Thought:` in the assistant's turn so that the model can only do as the client demands.

    Shaped like a step without a thought in the history (` ` and a new line), which the model has seen.
    The model goes on with the tool's name, or with the arguments; nothing is forced by "auto".
    """
    if isinstance(tool_choice, Named):
        return f" \n{ACTION}{name_to_input(tool_choice.name)}"
    if tool_choice == "required":
        return f" \n{ACTION}"
    return ""


def _open(
    turns: list[_Turn], last: Message | None, tool_choice: ToolChoice, can_call: bool, continued: bool
) -> tuple[Place, str]:
    """Leaves the last turn open for the reply, with the beginning of its next step where there must be one.

    Returns:
        Where the prompt leaves off now, and the step so far, without text that is not the server's own.
    """
    forced = forced_opening(tool_choice)
    place: Place = "thought"
    if forced:
        place = "action" if tool_choice == "required" else "arguments"
    if continued and last is not None:
        if not forced:
            return ("answer", f"{_ANSWER_STEP} {last.stripped().content}") if can_call else ("text", "")
        # The text that is continued is the thought, up to the end of its line.
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
    """Folds messages into turns: what the assistant and its tools say in a row is one turn."""
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
    """Puts the instruction in front of the question it belongs to; without any question it is its own turn."""
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
