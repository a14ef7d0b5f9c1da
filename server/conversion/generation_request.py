"""A request to generate, understood: what conversion makes and generation serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prompts.tool_format import ReplyParser
from server.engine.client import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate, free of any wire format.

    Attributes:
        prompts: one or more, each continued n times.
        n: choices a prompt; choice p * n + i continues prompt p.
        stops: strings that end a choice.
        include_stop_str_in_output: leave what ended a choice in its text.
        priority: lower is served first.
        cache_salt: cached prompt starts are shared only where it is equal; empty with all of the caller's.
        num_logprobs: alternatives to report a token; None reports no log-probabilities.
        num_prompt_logprobs: alternatives to report a token of the prompts; None reports none of them.
        return_tokens_as_token_ids: in log-probabilities, name tokens by their ids.
        return_token_ids: report ids too.
        show_special_tokens: control tokens are part of the text, by name.
        echo_texts: for each prompt what is repeated in front of its choices; empty without echo.
        new_parser: makes the reader of a choice's calls; None shows replies as they are.
        custom_tools: names of the tools whose calls are OpenAI's of type `custom`.
    """

    prompts: tuple[Prompt, ...]
    n: int = 1
    stops: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    priority: int = 0
    cache_salt: str = ""
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    return_tokens_as_token_ids: bool = False
    return_token_ids: bool = False
    show_special_tokens: bool = False
    echo_texts: tuple[str, ...] = ()
    new_parser: Callable[[], ReplyParser] | None = None
    custom_tools: frozenset[str] = frozenset()

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
