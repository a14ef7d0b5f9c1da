"""What a reply is held to, as one grammar for the engine: the schemas of tools, the format of answers."""

from __future__ import annotations

from dataclasses import replace

from model.contract.errors import InvalidRequestError
from prompts.react.line_format import Place
from prompts.react.render import Named
from prompts.schemas.schema import TextInput, ToolInput, arguments_grammar, json_rule, tool_call_grammar
from server.conversion.formats import AnswerFormat
from server.conversion.schema_enforcement import EnforcedSchema, SchemaEnforcer
from server.conversion.tools import FunctionCalling
from server.grammars.check import GrammarChecker
from server.off_loop import OffLoop


class ReplyGrammars:
    """Writes the grammars of replies, and has them tried out.

    Args:
        grammars: tries them out.
        off_loop: does what takes long with large ones.
    """

    def __init__(self, grammars: GrammarChecker, off_loop: OffLoop) -> None:
        self._grammars = grammars
        self._off_loop = off_loop
        self._schemas = SchemaEnforcer(grammars, off_loop)

    async def of_chat(
        self, calling: FunctionCalling, place: Place, answer: AnswerFormat | None, num_choices: int
    ) -> str | None:
        """Returns the grammar of a chat's reply; None is free text.

        Args:
            calling: the tools, and the choice among them.
            place: where the prompt leaves off.
            answer: what answers must look like.
            num_choices: of the request; each follows the grammar on its own.

        Raises:
            InvalidRequestError: something of it cannot be enforced.
            EngineUnavailableError: too many grammars are being tried out.
        """
        if place in ("answer", "text"):
            return await self.of_answer(answer, num_choices)
        if answer is not None and answer.rule is None:
            raise InvalidRequestError(
                "A grammar of your own and tools cannot be combined; use a JSON schema, a regex or choices.",
                param=answer.param,
            )
        answer = await self._enforced_format(answer)
        param = "functions" if calling.is_legacy else "tools"
        enforced = await self._enforced_inputs(calling, param)
        inputs = enforced
        if isinstance(calling.choice, Named):
            inputs = tuple(entry for entry in inputs if entry[0] == calling.choice.name)

        def write() -> tuple[str, dict[str, str]]:
            whole = tool_call_grammar(inputs, place=place, answer=None if answer is None else answer.rule)
            # Each schema on its own first: in the whole, what is wrong with one would only show deep in a reply.
            return whole, {
                arguments_grammar(tool_input): f"The schema of {name!r} in '{param}'" for name, tool_input in enforced
            }

        grammar, parts = await self._off_loop.run(write)
        await self._grammars.check(parts | {grammar: f"'{param}'"}, param=param, num_choices=num_choices)
        return grammar

    async def of_answer(self, answer: AnswerFormat | None, num_choices: int) -> str | None:
        """Returns the grammar of a reply that is nothing but an answer; None is free text.

        Args:
            answer: what it must look like.
            num_choices: of the request; each follows the grammar on its own.

        Raises:
            InvalidRequestError: something of it cannot be enforced.
            EngineUnavailableError: too many grammars are being tried out.
        """
        answer = await self._enforced_format(answer)
        if answer is None:
            return None
        grammar = answer.as_grammar()
        await self._grammars.check({grammar: f"'{answer.param}'"}, param=answer.param, num_choices=num_choices)
        return grammar

    async def _enforced_inputs(self, calling: FunctionCalling, param: str) -> tuple[tuple[str, ToolInput], ...]:
        """Returns of the tools' schemas what can be enforced; all of those that are strict."""
        schemas = {
            name: EnforcedSchema(calling.places[name], schema, is_strict=name in calling.strict, name=name)
            for name, schema in calling.schemas
            if not isinstance(schema, TextInput)
        }
        await self._schemas.enforce([*schemas.values()], param=param)
        return tuple((name, schemas[name].schema if name in schemas else sent) for name, sent in calling.schemas)

    async def _enforced_format(self, answer: AnswerFormat | None) -> AnswerFormat | None:
        """Returns a format as it is enforced; the whole of its schema is."""
        if answer is None or answer.schema is None:
            return answer
        enforced = EnforcedSchema(answer.place, answer.schema)
        await self._schemas.enforce([enforced], param=answer.param)
        return replace(answer, rule=await self._off_loop.run(lambda: json_rule(enforced.schema)))
