"""The grammar of ReAct replies: tool calls whose arguments fit the tools' schemas, and answers.

The grammar constrains only calls, from where the model begins one by the rule of line_format.py. Thoughts, plain
replies and final answers stay free.
"""

from __future__ import annotations

from collections.abc import Sequence

from prompts.react.line_format import ACTION, FINAL_ANSWER, SPACE, THOUGHT, Place, call_opening, name_to_input
from prompts.schemas.schema import ToolInput, arguments_grammar, input_rule, literal, whole_grammar

_SPACES = f"[{SPACE}]*".encode("unicode_escape").decode()


def tool_call_grammar(
    tools: Sequence[tuple[str, ToolInput]],
    *,
    place: Place = "turn",
    answer: str | None = None,
) -> str:
    """Returns the grammar of a reply that may call tools, in llguidance's Lark dialect, up to the arguments of a call.

    Args:
        tools: name and input of each callable tool; at least one.
        place: the end of the prompt: at a "turn" or in a "thought" a call is possible, after `Action:` ("action") the
            name of a tool must follow, after `Action Input:` ("arguments") the input of the only tool.
        answer: rule body that an answer must match, be it a final answer or the whole reply; None leaves both free.
    """
    if place == "arguments":
        return arguments_grammar(tools[0][1])
    rules = [f"arguments_{index}: {input_rule(schema)}" for index, (_, schema) in enumerate(tools)]
    named = [f"{literal(name_to_input(name))} arguments_{index}" for index, (name, _) in enumerate(tools)]
    if place == "action":
        return whole_grammar("\n".join([" | ".join(named), *rules]))
    # Lazy: the shortest match wins, so free text ends where one of these labels is complete.
    before = "" if place == "thought" else f"{_SPACES}{THOUGHT}"
    rules += [
        rf"to_name[lazy]: /{before}(.|\n)*\n{ACTION}/",
        rf"to_answer[lazy]: /{before}(.|\n)*\n{FINAL_ANSWER}/",
    ]
    starts = [f"to_name ({' | '.join(named)})", "to_answer " + ("TEXT" if answer is None else '" " answer')]
    if place == "turn":
        for index, (name, _) in enumerate(tools):
            rules.append(f"call_{index}[lazy]: /{_SPACES}/ {literal(call_opening(name))}")
            starts.append(f"call_{index} arguments_{index}")
    if answer is None:
        starts.append("TEXT")
        rules.append(r"TEXT: /(.|\n)*/")
    else:
        starts += ["answer"] * (place == "turn")
        rules.append(f"answer: {answer}")
    return whole_grammar("\n".join([" | ".join(starts), *rules]))
