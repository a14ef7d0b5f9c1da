"""A request in neutral form, whichever API it came by: messages, tools and options, and no wire types.

Another API needs a reader that makes one of these, a route, and a reply. Errors name fields of the request as it was
sent, so the names that differ between APIs are attributes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from pydantic import BaseModel

from prompts.messages import Message
from prompts.schemas.schema import whole_grammar
from server.conversion.tools import NO_TOOLS, FunctionCalling


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The form that an answer must have.

    Attributes:
        rule: body of a grammar rule; None when a whole grammar is given.
        grammar: a whole grammar of the client's own; None when there is a rule.
        param: the field that asked for it.
        schema: the JSON schema that the rule was made of, if there was one.
        place: the path of the schema in the request.
    """

    rule: str | None
    grammar: str | None
    param: str
    schema: Mapping[str, Any] | None = None
    place: str = ""

    def as_grammar(self) -> str:
        """Returns the grammar of a reply that is nothing but the answer."""
        if self.grammar is not None:
            return self.grammar
        assert self.rule is not None, "one of the two is given"
        return whole_grammar(self.rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyOptions:
    """Options of the replies; a name that is the wire's too means the same here.

    Attributes:
        num_logprobs: alternatives to report a token; None reports no log-probabilities.
        answer: the form that answers must have; None is free text.
        max_tokens_param: the field that `max_tokens` came from.
    """

    n: int = 1
    stream: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    priority: int = 0
    cache_salt: str = ""
    return_token_ids: bool = False
    prompt_logprobs: int | None = None
    return_tokens_as_token_ids: bool = False
    skip_special_tokens: bool = True
    num_logprobs: int | None = None
    answer: AnswerFormat | None = None
    max_tokens_param: str = "max_tokens"

    @classmethod
    def from_fields(cls, source: BaseModel, **own: Any) -> Self:
        """Takes the fields of a request that have the same names; one that is absent or null is the default.

        Args:
            source: a request; its extra fields, which were never checked, are not taken.
            own: values that beat the request's fields.
        """
        known = type(source).model_fields
        sent = ((one.name, getattr(source, one.name)) for one in fields(cls) if one.name in known)
        return cls(**{name: value for name, value in sent if value is not None} | own)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to continue.

    Attributes:
        messages: at least one; results of tools name calls that were made before them.
        calling: tools, and the choice among them.
        continue_final: whether a last message of the assistant is continued; None is yes.
        open_turn: end the prompt with the assistant's turn open.
        guards_results: quote what in tools' results looks like the assistant's words; None does as configured.
        truncation: "auto" drops oldest turns that do not fit, "disabled" refuses them; None does as configured.
        max_length: most tokens of prompt and reply together; a reply may have one token whatever it says.
        messages_param: the field that the messages stand in.
        prediction: how the client expects the reply to begin or to be, perhaps empty; it changes nothing but the time.
    """

    messages: Sequence[Message]
    calling: FunctionCalling = NO_TOOLS
    options: ReplyOptions = field(default_factory=ReplyOptions)
    continue_final: bool | None = None
    open_turn: bool = True
    guards_results: bool | None = None
    truncation: str | None = None
    max_length: int | None = None
    messages_param: str = "messages"
    prediction: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """Texts to continue.

    Attributes:
        prompts: each a text, or each a list of token ids; at least one.
        echo: repeat the prompts in front of the replies, and report their log-probabilities too.
        allowed_special: names of the control tokens that texts may hold as tokens, or "all"; None goes by the next.
        add_special_tokens: they may hold all.
    """

    prompts: Sequence[str] | Sequence[Sequence[int]]
    options: ReplyOptions = field(default_factory=ReplyOptions)
    echo: bool = False
    allowed_special: Literal["all"] | Sequence[str] | None = None
    add_special_tokens: bool = False
