"""The request that conversion makes and generation serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prompts.tool_format import ReplyParser
from server.engine.client import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Prompts in ids, sampling, and how to read and report the replies; free of any wire format.

    Attributes:
        prompts: one or more, each continued n times.
        n: choices a prompt; choice p * n + i continues prompt p.
        stops: strings that end a choice.
        include_stop_str_in_output: leave what ended a choice in its text.
        priority: lower is served first.
        cache_salt: cached prompt starts are shared only where it is equal; empty with all of the caller's.
        num_logprobs: alternatives to report a token; None reports no log-probabilities.
        num_prompt_logprobs: alternatives to report a token of the prompts; None reports none of them.
        return_tokens_as_token_ids: name tokens by their ids where log-probabilities are reported.
        return_token_ids: report ids too.
        show_special_tokens: control tokens are part of the text, by name.
        echo_texts: the text to repeat in front of each prompt's choices; empty without echo.
        new_parser: makes the reader of a choice's calls; None shows replies as they are.
        custom_tools: names of the tools whose calls are OpenAI's of type `custom`.
        text_tools: names of the tools whose input is text or code, not JSON.
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
    text_tools: frozenset[str] = frozenset()

    @property
    def num_choices(self) -> int:
        """Choices of all prompts together."""
        return len(self.prompts) * self.n

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts together, each counted once."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    def prompt_of(self, choice: int) -> Prompt:
        """Returns the prompt a choice continues."""
        return self.prompts[choice // self.n]
