"""Conversations with tools, rendered like the server renders them (prompts/react/render.py).

A test compares the result with the published prompts.
"""

from __future__ import annotations

import random

from demo.recipe.corpus.chat.exchanges import plain_exchange
from demo.recipe.corpus.document import HEARD, Span
from demo.recipe.corpus.split import HELD_OUT, TRAIN
from demo.recipe.corpus.tools import results
from demo.recipe.corpus.tools.domains import Domain
from demo.recipe.corpus.tools.questions import Request, ask, polite
from demo.recipe.corpus.tools.results import Result
from demo.recipe.corpus.tools.tools import Tool, make_tool, pick_domain
from demo.recipe.corpus.values import Value

FINAL_THOUGHT = "I now know the final answer."
_HEAD = "Answer the following questions as best you can. You have access to the following APIs:\n\n"
_FORMAT = (
    "Use the following format:\n\nQuestion: the input question you must answer\n"
    "Thought: you should always think about what to do\nAction: the action to take, should be one of ["
)
_TAIL = (
    "]\nAction Input: the input to the action\nObservation: the result of the action\n"
    "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
    "Thought: I now know the final answer\nFinal Answer: the final answer to the original input question\n\n"
    "Begin!\n\nQuestion: "
)
# The prompt repeats every name, which is practice in copying; learned at this small weight.
NAME_WEIGHT = 0.25


def header(tools: list[Tool]) -> list[Span]:
    """Returns the instruction before a question, which lists the tools."""
    spans: list[Span] = [(_HEAD, 0.0)]
    for tool in tools:
        first, second, third = (
            f"{tool.name}: Call this tool to interact with the ",
            f" API. What is the {tool.human} API",
            " useful for? ",
        )
        rest = tool.render()[len(first) + len(tool.human) + len(second) + len(third) :]
        lead, _, tail = second.partition(tool.human)
        spans += [(tool.name, HEARD), (first.removeprefix(tool.name), 0.0)]
        spans += [(tool.human, NAME_WEIGHT if tool.human == tool.name else HEARD), (lead, 0.0)]
        spans += [(tool.human, NAME_WEIGHT), (tail + third, 0.0), (rest + "\n\n", HEARD)]
    spans += [(_FORMAT, 0.0), (", ".join(t.name for t in tools), NAME_WEIGHT), (_TAIL, 0.0)]
    return spans


def thought(tool: Tool, lang: str) -> str:
    """Returns the thought before a call."""
    return f"I should use the {tool.name} tool." if lang == "en" else f"我应该使用{tool.name}工具。"


def call_spans(request: Request, lang: str, result: Result | None, first: bool, said: str | None = None) -> list[Span]:
    """Returns Thought, Action, Action Input and, if there is a result, the Observation.

    Args:
        lang: the language of the thought.
        result: None if the text ends at the call.
        first: the reply begins here.
        said: a thought that is not learned (a client's, or an empty one where the server forces a call).
    """
    lead = f"{'' if first else chr(10)}Thought: {thought(request.tool, lang) if said is None else said}\n"
    call = f"Action: {request.tool.name}\nAction Input: {request.arguments_json()}\nObservation:"
    spans: list[Span] = [(lead, 1.0 if said is None else 0.0), (call, 1.0)]
    return [*spans, (f" {result.observation}", 0.0)] if result else spans


def final_span(answer: str, first: bool, weight: float = 1.0) -> Span:
    """Returns the end of a reply."""
    return (f"{'' if first else chr(10)}Thought: {FINAL_THOUGHT}\nFinal Answer: {answer}", weight)


CHINESE_SHARE = 0.45
# Share of small talk among questions that no tool fits. The others ask for a missing tool, which is harder to detect.
PLAIN_SHARES = {TRAIN: 0.35, HELD_OUT: 0.5}
# With one of these tools, questions of fact and sums would be for the tool.
_KNOWING = set(
    "search calculator translate dictionary population statistics web_page quiz wiki country_info synonyms solve root "
    "math_explain".split()
)


class Episode:
    """Builds one conversation around a set of tools.

    Args:
        split: the side of the split that tools and wordings come from.
        num_tools: how many tools are offered.
        rich: probability that a tool's arguments have descriptions.
        generic: probability that a tool has an invented purpose.
        purposes: the side that the other purposes come from, if not `split`.
    """

    def __init__(
        self,
        rng: random.Random,
        split: str,
        num_tools: int,
        rich: float = 0.5,
        generic: float = 0.35,
        purposes: str | None = None,
    ) -> None:
        self.rng, self.split, self.generic, self.purposes = rng, split, generic, purposes or split
        self.lang = "zh" if rng.random() < CHINESE_SHARE else "en"
        self.tool_lang = self.lang if rng.random() < 0.85 else ("en" if self.lang == "zh" else "zh")
        self.tools: list[Tool] = []
        self.rich = rich
        while len(self.tools) < num_tools:
            self.add_tool(self._pick_domain())

    def _pick_domain(self) -> Domain:
        return pick_domain(self.rng, self.split, self.generic, self.purposes)

    def add_tool(self, domain: Domain) -> Tool | None:
        """Adds a tool, unless it resembles another one."""
        lang = self.tool_lang if self.rng.random() < 0.9 else "en"
        if self.split == HELD_OUT:
            lang = self.lang  # the model cannot translate words that it has never seen
        tool = make_tool(domain, self.rng, lang, self.split, self.rich)
        if any(t.name == tool.name or t.domain.key == tool.domain.key for t in self.tools):
            return None
        self.tools.append(tool)
        return tool

    def request(self, tool: Tool | None = None, fixed: dict[str, Value] | None = None) -> Request:
        """Makes a question for one of the tools."""
        return ask(tool or self.rng.choice(self.tools), self.rng, self.lang, self.split, fixed)

    def result(self, tool: Tool, fail: float = 0.07) -> Result:
        """Makes a result of a tool."""
        return results.make_result(tool.domain.result, self.rng, self.lang, self.split, fail)

    def unfit(self) -> tuple[str, str]:
        """Returns a question that none of the tools fits, and its answer."""
        knowing = any(t.domain.key in _KNOWING or t.domain.key.startswith("get_") for t in self.tools)
        searching = any(t.domain.key == "search" for t in self.tools)
        if searching or self.rng.random() < PLAIN_SHARES[self.split]:
            return plain_exchange(self.rng, self.lang, self.split, not knowing)
        while True:
            domain = self._pick_domain()
            if all(not _alike(domain, t.domain) for t in self.tools):
                break
        other = make_tool(domain, self.rng, self.lang, self.split)
        question = polite(ask(other, self.rng, self.lang, self.split).question, self.rng, self.lang)
        return (
            question,
            "I'm sorry, none of my tools can do that." if self.lang == "en" else "抱歉，我没有可以完成这个请求的工具。",
        )


def _alike(a: Domain, b: Domain) -> bool:
    """Whether the same words could mean both purposes, as their nouns have a word in common."""
    words_a, words_b = ({word for noun in d.nouns for word in noun.split("_")} for d in (a, b))
    return bool(words_a & words_b) or a.key == b.key
