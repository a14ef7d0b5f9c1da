"""Makes schemas ready to be enforced, by leaving out keywords that cannot be.

A tool is better called with most of its schema enforced than not at all, and a bad schema must not cost a request its
other tools. What is left out is logged once. Of a `strict` tool and a response_format all must be enforced: they are
refused instead, with the path of the keyword and the compiler's reason.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from model.contract.errors import InvalidRequestError
from prompts.schemas.faults import Fault, constraints, examine, patterns
from prompts.schemas.schema import arguments_grammar, json_rule, whole_grammar
from prompts.schemas.subschemas import Path, without
from server.grammars.check import TOO_COMPLEX, GrammarChecker
from server.off_loop import OffLoop

logger = logging.getLogger(__name__)

_MAX_REMEMBERED = 1024
# To find keywords without which schemas compile, a request may try so many variants, of so many characters in all, and
# for about so many seconds (each is reckoned with the time that the failed compilation took).
_MAX_TRIALS = 64
_MAX_TRIAL_CHARS = 1 << 20
_MAX_TRIALS_S = 0.3
_MAX_PATTERNS = 256
_MAX_SHOWN_CHARS = 300
_MAX_LINES = 16  # lines of the log for a request


@dataclass(slots=True)
class EnforcedSchema:
    """A schema on its way to a grammar.

    Attributes:
        where: path of the schema in the request.
        schema: at first as sent, then the part that can be enforced.
        is_strict: all of it has to be enforced.
        name: the tool's name, for the log.
        faults: the keywords that were left out.
    """

    where: str
    schema: Mapping[str, Any]
    is_strict: bool = True
    name: str = ""
    faults: list[Fault] = field(default_factory=list)

    def examine(self) -> None:
        """Leaves out the keywords that are known to fail without asking a compiler."""
        whole = self.schema
        self.schema, self.faults = examine(whole)
        if "type" in whole and "type" not in self.schema and not self.is_strict:
            self.schema["type"] = "object"  # arguments always are one

    def leave_out(self, faults: Sequence[Fault]) -> None:
        """Leaves out more keywords; for a fault without a path, the whole schema."""
        for fault in faults:
            self.faults.append(fault)
            self.schema = without(self.schema, fault.path) if fault.path else {"type": "object"}

    def grammar(self, schema: Mapping[str, Any] | None = None) -> str:
        """Returns the grammar of values of the schema, or of a variant of it."""
        schema = self.schema if schema is None else schema
        return whole_grammar(json_rule(schema)) if self.is_strict else arguments_grammar(schema)

    def place_of(self, fault: Fault) -> str:
        """Returns the path of a fault as error messages show it."""
        text = self.where
        for step in fault.path:
            text += f"[{step}]" if isinstance(step, int) else f".{step}"
        return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


class _Failing(NamedTuple):
    """A schema that cannot be compiled, why, and the seconds it took to find out."""

    schema: EnforcedSchema
    why: str
    cost_s: float


class SchemaEnforcer:
    """Leaves out of schemas what cannot be enforced, or refuses them; remembers what a compiler found."""

    def __init__(self, grammars: GrammarChecker, off_loop: OffLoop) -> None:
        self._grammars = grammars
        self._off_loop = off_loop
        self._found: OrderedDict[bytes, tuple[Fault, ...]] = OrderedDict()
        self._logged: OrderedDict[tuple[str, Path], None] = OrderedDict()

    async def enforce(self, schemas: Sequence[EnforcedSchema], *, param: str) -> None:
        """Changes schemas in place so that each can be enforced.

        Args:
            param: the request's field that they came from.

        Raises:
            InvalidRequestError: a strict schema cannot be enforced, with path and reason, or a schema is too complex.
            EngineUnavailableError: too many grammars are being tried out.
        """

        def examine_all() -> None:
            for schema in schemas:
                schema.examine()

        try:
            await self._off_loop.run(examine_all)
            for schema in schemas:
                _refuse_strict(schema, param)
            await self._ask_compiler(schemas, param)
        except RecursionError as error:
            raise InvalidRequestError(
                f"'{param}' cannot be enforced: a value in it is too deep.", param=param
            ) from error
        for schema in schemas:
            _refuse_strict(schema, param)
        self._log(schemas)

    async def _ask_compiler(self, schemas: Sequence[EnforcedSchema], param: str) -> None:
        keys = await self._off_loop.run(
            lambda: [hashlib.sha256(schema.grammar().encode()).digest() for schema in schemas]
        )
        unknown = []
        for schema, key in zip(schemas, keys, strict=True):
            if key in self._found:
                schema.leave_out(self._found[key])
            else:
                unknown.append((schema, key, len(schema.faults)))
        failing = await self._failing([schema for schema, _, _ in unknown], param)
        if failing:
            await self._leave_out_patterns([one.schema for one in failing])
            failing = await self._failing([one.schema for one in failing], param)
        if failing:
            await self._leave_out_keywords(failing)
        for schema, key, num_known in unknown:
            self._found[key] = tuple(schema.faults[num_known:])
        while len(self._found) > _MAX_REMEMBERED:
            self._found.popitem(last=False)

    async def _failing(self, schemas: Sequence[EnforcedSchema], param: str) -> list[_Failing]:
        """Returns the schemas that do not compile."""
        verdicts = await self._grammars.verdicts([schema.grammar() for schema in schemas])
        if TOO_COMPLEX in verdicts:
            places = ", ".join(f"'{s.where}'" for s, v in zip(schemas, verdicts, strict=True) if v == TOO_COMPLEX)
            raise InvalidRequestError(f"{places[:_MAX_SHOWN_CHARS]} cannot be enforced: {TOO_COMPLEX[0]}.", param=param)
        return [
            _Failing(schema, why, cost_s)
            for schema, (why, cost_s) in zip(schemas, verdicts, strict=True)
            if why is not None
        ]

    async def _leave_out_patterns(self, schemas: Sequence[EnforcedSchema]) -> None:
        """Leaves out patterns that are no regular expressions for the compiler."""
        found = [(schema, *pattern) for schema in schemas for pattern in patterns(schema.schema)][:_MAX_PATTERNS]
        probes = [arguments_grammar({"type": "string", "pattern": text}) for _, _, text in found]
        verdicts = await self._grammars.verdicts(probes)
        for (schema, path, _), verdict in zip(found, verdicts, strict=True):
            if verdict[0] is not None and verdict != TOO_COMPLEX:
                schema.leave_out([Fault(path, verdict[0])])

    async def _leave_out_keywords(self, failing: Sequence[_Failing]) -> None:
        """Leaves out of each schema the one keyword without which it compiles; where there is none, everything."""
        trials: list[tuple[EnforcedSchema, Path]] = []
        num_chars, seconds = 0, 0.0
        for schema, _, cost_s in failing:
            length = len(schema.grammar())
            for path in constraints(schema.schema):
                num_chars += length
                seconds += cost_s
                if len(trials) == _MAX_TRIALS or num_chars > _MAX_TRIAL_CHARS or seconds > _MAX_TRIALS_S:
                    break
                trials.append((schema, path))
        variants = await self._off_loop.run(
            lambda: [schema.grammar(without(schema.schema, path)) for schema, path in trials]
        )
        paths: dict[int, Path] = {}
        for (schema, path), (why, _) in zip(trials, await self._grammars.verdicts(variants), strict=True):
            if why is None:
                paths.setdefault(id(schema), path)
        for schema, why, _ in failing:
            schema.leave_out([Fault(paths.get(id(schema), ()), why)])

    def _log(self, schemas: Sequence[EnforcedSchema]) -> None:
        found = [(schema.name, fault) for schema in schemas for fault in schema.faults]
        news = [(name, fault) for name, fault in found if (name, fault.path) not in self._logged]
        for name, fault in news[:_MAX_LINES]:
            place = EnforcedSchema("parameters", {}).place_of(fault)
            # A client's text must not look like lines of the log.
            shown = (ascii(text)[1:-1] for text in (name, place, fault.reason))
            logger.warning("tool %s: %s cannot be enforced as it is: %s", *shown)
        if len(news) > _MAX_LINES:
            logger.warning("of the tools of this request %d more keywords cannot be", len(news) - _MAX_LINES)
        self._logged.update(((name, fault.path), None) for name, fault in news)
        while len(self._logged) > _MAX_REMEMBERED:
            self._logged.popitem(last=False)


def _refuse_strict(schema: EnforcedSchema, param: str) -> None:
    if schema.is_strict and schema.faults:
        fault = schema.faults[0]
        raise InvalidRequestError(f"'{schema.place_of(fault)}' cannot be enforced: {fault.reason}.", param=param)
