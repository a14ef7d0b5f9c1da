"""Function calling as these models learned it: the ReAct format, folded into plain ChatML turns.

It exists to write tools, calls and their results into the prompt, and to open the assistant's turn so
that a call must follow where the client demands one. It must not know the wire's tool_choice objects
(the server maps them) nor tokens. How a reply is read back is react_parser.py.

What the published API server accepts is rendered as it renders it. What it refuses is rendered too:
messages keep their places in any order; a tool's result with no assistant's turn before it opens one;
the results of several calls in one message stand each behind its own call, as if the calls had been
made one after the other; a call at the very end that nobody answered gets an empty Observation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prompts import chatml
from prompts.messages import FunctionCall, Message, ToolSpec, strip_content
from prompts.segments import Segment

THOUGHT = "Thought:"
ACTION = "Action:"
ACTION_INPUT = "Action Input:"
OBSERVATION = "Observation:"
FINAL_ANSWER = "Final Answer:"
# None is the beginning of another: a label is known as soon as its colon is there.
LABELS = (THOUGHT, ACTION, ACTION_INPUT, OBSERVATION, FINAL_ANSWER)

# Generation ends where the model would make up a tool's result. Only at the start of a line, for the word
# may well stand inside an argument; an Observation that opens a reply is found by the parser (`done`).
REACT_STOP = ("\n" + OBSERVATION,)

_ANSWER_STEP = f"{THOUGHT} I now know the final answer.\n{FINAL_ANSWER}"

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


@dataclass(frozen=True, slots=True)
class Named:
    """A tool choice: this tool must be called."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | Named


@dataclass(frozen=True, slots=True)
class ReActPrompt:
    """A rendered conversation, and how the reply to it is to be read.

    Args:
        segments: the prompt.
        opening: what the server itself wrote of the step that the model goes on with; the `initial` of
            `ReActParser`. It is scaffolding only, whatever text users and tools sent.
        reads_react: whether the reply may be in ReAct form and goes through the parser.
        allow_calls: whether the model may call; the parser's `allow_calls`.
    """

    segments: list[Segment]
    opening: str
    reads_react: bool
    allow_calls: bool


@dataclass(slots=True)
class _Turn:
    """A turn in the making; only an assistant's turn grows."""

    role: Literal["system", "user", "assistant"]
    text: str = ""
    has_steps: bool = False

    def add(self, text: str) -> None:
        self.text = f"{self.text}\n{text}" if self.text else strip_content(text)


def render(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    *,
    tool_choice: ToolChoice = "auto",
    default_system: str | None = chatml.DEFAULT_SYSTEM,
    open_turn: bool = True,
    continue_final: bool = True,
) -> ReActPrompt:
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
    after_step = last is not None and (last.role == "tool" or bool(last.calls))

    turns = _turns(messages, answers_are_steps=can_call, last_is_thought=continued and forced)
    has_steps = can_call or any(turn.has_steps for turn in turns)
    if can_call:
        _add_instruction(turns, tools)
    opening = ""
    if open_turn:
        if not (continued or after_step):
            turns.append(_Turn("assistant"))
        if continued and not forced:
            opening = _opening_of_answer(messages[-1]) if can_call else ""
        else:
            if last is not None and last.calls:
                turns[-1].add(f"{OBSERVATION} ")
            opening = _extend_open_turn(turns[-1], tool_choice, is_thought=continued, after_step=after_step)
    plain = [Message(turn.role, strip_content(turn.text)) for turn in turns]
    return ReActPrompt(
        segments=chatml.render(plain, default_system=default_system, open_turn=open_turn),
        opening=opening,
        reads_react=can_call or (has_steps and not continued),
        allow_calls=can_call,
    )


def forced_opening(tool_choice: ToolChoice) -> str:
    """What follows `Thought:` in the assistant's turn so that the model can only do as the client demands.

    Shaped like a step without a thought in the history (` ` and a new line), which the model has seen.
    The model goes on with the tool's name, or with the arguments; nothing is forced by "auto".
    """
    if isinstance(tool_choice, Named):
        return f" \n{ACTION} {tool_choice.name}\n{ACTION_INPUT}"
    if tool_choice == "required":
        return f" \n{ACTION}"
    return ""


def _extend_open_turn(turn: _Turn, tool_choice: ToolChoice, *, is_thought: bool, after_step: bool) -> str:
    """Writes the beginning of the next step into the open turn.

    Returns:
        The step so far, without text that is not the server's own.
    """
    forced = forced_opening(tool_choice)
    if is_thought:
        # The text that is continued is the thought, up to the end of its line.
        turn.text = turn.text.rstrip() + forced.lstrip(" ")
        return THOUGHT + forced
    if after_step:
        step = _ANSWER_STEP if tool_choice == "none" else THOUGHT + forced
        turn.add(step)
        return step
    if forced:
        turn.text = THOUGHT + forced
    return turn.text


def _opening_of_answer(message: Message) -> str:
    """The parser's view of an answer that is continued.

    Only the last character, which tells the parser that the answer has begun: of the whole text, a line
    that looks like scaffolding would be taken for the server's.
    """
    return f"{_ANSWER_STEP} {message.stripped().content[-1:]}"


def _turns(messages: Sequence[Message], *, answers_are_steps: bool, last_is_thought: bool) -> list[_Turn]:
    """Folds messages into turns: what the assistant and its tools say in a row is one turn."""
    turns: list[_Turn] = []
    index = 0
    while index < len(messages):
        message = messages[index].stripped()
        index += 1
        if message.role == "system" or message.role == "user":
            turns.append(_Turn(message.role, message.content))
            continue
        if not turns or turns[-1].role != "assistant":
            turns.append(_Turn("assistant"))
        turn = turns[-1]
        if message.role == "tool":
            turn.has_steps = True
            turn.add(f"{OBSERVATION} {message.content}")
        elif message.calls:
            first_result = index
            while index < len(messages) and messages[index].role == "tool":
                index += 1
            results = [result.stripped() for result in messages[first_result:index]]
            _add_steps(turn, message, results)
        elif last_is_thought and index == len(messages):
            turn.add(_as_thought(message.content))
        elif answers_are_steps:
            turn.add(f"{_ANSWER_STEP} {message.content}")
        else:
            turn.add(message.content)
    return turns


def _add_steps(turn: _Turn, message: Message, results: Sequence[Message]) -> None:
    """Adds a message's calls, each with its results behind it.

    A result belongs to the call whose id it names; those that name none go to the calls still without a
    result, in order, and what is then left over to the last call.
    """
    turn.has_steps = True
    results_of: list[list[str]] = [[] for _ in message.calls]
    unmatched = []
    for result in results:
        owner = _owner(message.calls, result)
        if owner is None:
            unmatched.append(result.content)
        else:
            results_of[owner].append(result.content)
    for content in unmatched:
        free = next((own for own in results_of if not own), results_of[-1])
        free.append(content)
    thought = _as_thought(message.content)
    for call, own in zip(message.calls, results_of, strict=True):
        turn.add(f"{thought}\n{ACTION} {call.name}\n{ACTION_INPUT} {call.arguments}")
        # A call that is passed over while another of its message is answered has had no result: an empty one.
        for content in own or [""] * bool(results):
            turn.add(f"{OBSERVATION} {content}")
        thought = _as_thought("")


def _owner(calls: Sequence[FunctionCall], result: Message) -> int | None:
    """Index of the call a result names by its id."""
    if result.tool_call_id is None:
        return None
    return next((i for i, call in enumerate(calls) if call.id == result.tool_call_id), None)


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
        question.text = f"{instruction}\n\nQuestion: {question.text}"
    else:
        num_systems = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
        turns.insert(num_systems, _Turn("user", instruction))


def _tool_line(tool: ToolSpec) -> str:
    return (
        f"{tool.name_for_model}: Call this tool to interact with the {tool.name_for_human} API. "
        f"What is the {tool.name_for_human} API useful for? {tool.description} Parameters: {tool.parameters_json}"
    )
