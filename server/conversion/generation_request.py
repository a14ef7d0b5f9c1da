"""A request to generate, understood: what conversion makes and generation serves."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.client import Prompt


@dataclass(frozen=True, slots=True)
class ReplyReading:
    """How a chat reply in ReAct form is read.

    Attributes:
        opening: what of the reply's first step stands in the prompt already.
        tool_names: of those that may be called.
        is_legacy: write a call as `function_call`, not `tool_calls`.
        text_tools: those among them whose input is text, not JSON.
        custom_tools: those whose calls are OpenAI's of type `custom`.
    """

    opening: str = ""
    tool_names: tuple[str, ...] = ()
    is_legacy: bool = False
    text_tools: frozenset[str] = frozenset()
    custom_tools: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate, free of any wire format.

    Attributes:
        prompts: one or more, each continued n times.
        n: choices a prompt; choice p * n + i continues prompt p.
        stops: strings that end a choice.
        include_stop: leave what ended a choice in its text.
        priority: lower is served first.
        cache_salt: cached prompt starts are shared only where it is equal; empty with all of the caller's.
        num_top_logprobs: alternatives to report a token; None reports no log-probabilities.
        num_prompt_logprobs: alternatives to report a token of the prompts; None reports none of them.
        names_are_ids: in log-probabilities, name tokens by their ids.
        return_token_ids: report ids too.
        speaks_functions: the client spoke the older form of tools, `functions` and `function_call`.
        show_special_tokens: control tokens are part of the text, by name.
        echo_texts: for each prompt what is repeated in front of its choices; empty without echo.
        reading: how replies are read for calls; None shows them as they are.
    """

    prompts: tuple[Prompt, ...]
    n: int = 1
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    priority: int = 0
    cache_salt: str = ""
    num_top_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    names_are_ids: bool = False
    return_token_ids: bool = False
    show_special_tokens: bool = False
    echo_texts: tuple[str, ...] = ()
    speaks_functions: bool = False
    reading: ReplyReading | None = None

    @property
    def num_choices(self) -> int:
        """Of all prompts together."""
        return len(self.prompts) * self.n

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts together, each counted once."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    def prompt_of(self, choice: int) -> Prompt:
        """Returns the prompt a choice continues."""
        return self.prompts[choice // self.n]
