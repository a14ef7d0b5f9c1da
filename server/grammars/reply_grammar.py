"""The grammar that the engine holds a reply to, of the schemas of tools and the format of answers."""

from __future__ import annotations

from dataclasses import replace

from model.contract.errors import InvalidRequestError
from prompts.schemas.schema import TextInput, ToolInput, arguments_grammar, json_rule
from prompts.tool_format import Named, RenderedPrompt, ToolFormat
from server.conversion.neutral_request import AnswerFormat
from server.conversion.tools import FunctionCalling
from server.grammars.check import GrammarChecker
from server.grammars.schema_enforcement import EnforcedSchema, SchemaEnforcer
from server.off_loop import OffLoop


class ReplyGrammars:
    """Writes the grammars of replies, and has them tried."""

    def __init__(self, grammars: GrammarChecker, off_loop: OffLoop, tool_format: ToolFormat) -> None:
        self._grammars = grammars
        self._tool_format = tool_format
        self._off_loop = off_loop
        self._schemas = SchemaEnforcer(grammars, off_loop)

    async def of_chat(
        self, calling: FunctionCalling, prompt: RenderedPrompt, answer: AnswerFormat | None, num_choices: int
    ) -> str | None:
        """Returns the grammar of a chat's reply; None is free text.

        Args:
            calling: the tools, and the choice among them.
            prompt: the prompt that is replied to.
            answer: the format of answers; None is free text.
            num_choices: choices of the request, each of which follows the grammar on its own.

        Raises:
            InvalidRequestError: a schema, a format or their combination cannot be enforced.
            EngineUnavailableError: too many grammars are being tried out.
        """
        if not prompt.can_call:
            return await self.of_answer(answer, num_choices)
        if answer is not None and answer.rule is None:
            raise InvalidRequestError(
                "A grammar of your own and tools cannot be combined; use a JSON schema, a regex or choices.",
                param=answer.param,
            )
        answer = await self._enforced_format(answer)
        param = calling.param
        enforced = await self._enforced_inputs(calling)
        named = calling.choice.name if isinstance(calling.choice, Named) else None
        inputs = tuple(entry for entry in enforced if named in (None, entry[0]))

        def write() -> tuple[str, dict[str, str]]:
            whole = self._tool_format.grammar(inputs, prompt, answer=None if answer is None else answer.rule)
            # Each schema is tried on its own too: in the whole grammar, its faults would show only deep in a reply.
            return whole, {
                arguments_grammar(tool_input): f"The schema of {name!r} in '{param}'" for name, tool_input in enforced
            }

        grammar, parts = await self._off_loop.run(write)
        await self._grammars.check(parts | {grammar: f"'{param}'"}, param=param, num_choices=num_choices)
        return grammar

    async def of_answer(self, answer: AnswerFormat | None, num_choices: int) -> str | None:
        """Like `of_chat`, for a reply that cannot call tools."""
        answer = await self._enforced_format(answer)
        if answer is None:
            return None
        grammar = answer.as_grammar()
        await self._grammars.check({grammar: f"'{answer.param}'"}, param=answer.param, num_choices=num_choices)
        return grammar

    async def _enforced_inputs(self, calling: FunctionCalling) -> tuple[tuple[str, ToolInput], ...]:
        """Returns the part of each tool's schema that can be enforced, by the tool's name."""
        schemas = {
            tool.name: EnforcedSchema(tool.input_place, tool.input, is_strict=tool.is_strict, name=tool.name)
            for tool in calling.tools
            if not isinstance(tool.input, TextInput)
        }
        await self._schemas.enforce([*schemas.values()], param=calling.param)
        return tuple((t.name, schemas[t.name].schema if t.name in schemas else t.input) for t in calling.tools)

    async def _enforced_format(self, answer: AnswerFormat | None) -> AnswerFormat | None:
        """Returns a format whose schema, if it has one, was made ready to be enforced."""
        if answer is None or answer.schema is None:
            return answer
        enforced = EnforcedSchema(answer.place, answer.schema)
        await self._schemas.enforce([enforced], param=answer.param)
        return replace(answer, rule=await self._off_loop.run(lambda: json_rule(enforced.schema)))
