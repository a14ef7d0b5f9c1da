"""Makes responses: what is kept of the conversation and what was sent to a generation, and its end to what is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request

from server.conversion.generation_request import GenerationRequest
from server.conversion.readers.responses import new_items, read_responses
from server.gates.callers import Caller
from server.replies.generation import Generation
from server.replies.responses import ResponsesReply
from server.responses.stored_responses import StoredResponses, append_items, put_response, with_ids
from server.store.errors import StoreError
from server.store.records import Change
from server.wire.shapes.responses import ResponsesRequest

if TYPE_CHECKING:
    from server.services import Services

logger = logging.getLogger(__name__)

JsonDict = dict[str, Any]


@dataclass(slots=True)
class NewResponse:
    """A response on its way.

    Attributes:
        response: as clients see it before anything is done.
        caller: whose it is.
        items: of the conversation, with what was sent now.
        num_before: of them that were kept before.
    """

    body: ResponsesRequest
    response: JsonDict
    caller: Caller
    items: Sequence[JsonDict] = ()
    num_before: int = 0

    @property
    def id(self) -> str:
        """Of the response."""
        return str(self.response["id"])

    @property
    def hex(self) -> str:
        """What ids of its items begin with."""
        return self.id.partition("_")[2]

    def changes(self, response: JsonDict) -> list[Change]:
        """Returns what keeps a response that is over, in a conversation with its items.

        Args:
            response: as it is now.
        """
        conversation = response["conversation"]
        if conversation is None:
            return [put_response(self.caller.owner, response)]
        added = [*self.items[self.num_before :], *response["output"]]
        return [put_response(self.caller.owner, response), append_items(conversation["id"], added)]


class ResponseMaker:
    """Makes the responses of one app."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.stored = StoredResponses(services.store, services.off_loop)

    async def generate(self, http: Request, new: NewResponse) -> Generation:
        """Reads what the response goes on from, and hands it to the engine.

        Args:
            http: the request came by.
            new: takes the items.

        Raises:
            ApiError: something is not kept here, or too much waits.
            InvalidRequestError: it cannot be served as asked.
            EngineUnavailableError: the engine would not serve it now.
        """
        services = self._services

        async def convert() -> GenerationRequest:
            engine = services.engine.require_ready()
            if not new.items:
                await self._find_items(new)
            chat = await services.off_loop.run(lambda: read_responses(new.body, new.items))
            services.unknown_fields.note(new.body)
            return await services.converter.chat(chat, engine)

        return await services.generate(http, str(new.response["model"]), convert)

    async def _find_items(self, new: NewResponse) -> None:
        body, owner = new.body, new.caller.owner
        before: list[JsonDict] = []
        if body.previous_response_id is not None:
            before = await self.stored.after(owner, body.previous_response_id)
        elif new.response["conversation"] is not None:
            id = new.response["conversation"]["id"]
            await self.stored.conversation(owner, id)
            before = await self.stored.items(owner, id)
        sent = await self._services.off_loop.run(lambda: new_items(body.input))
        sent = await self.stored.resolved(owner, sent)
        new.num_before = len(before)
        new.items = [*before, *with_ids(sent, new.hex, len(before))]

    def reply(self, generation: Generation | None, new: NewResponse) -> ResponsesReply:
        """Returns the writer of the response."""
        request = None if generation is None else generation.request
        return ResponsesReply(request, new.response, len(new.items), self._services.tokenizer)

    async def keep(self, new: NewResponse, generation: Generation, reply: ResponsesReply) -> None:
        """Keeps a response whose client waits for its end, if that is wanted; says in it if that fails."""
        reply.finish(generation.usage())
        if not reply.response["store"] and reply.response["conversation"] is None:
            return

        def changes() -> list[Change]:
            if reply.response["store"]:
                return [*new.changes(reply.response), append_items(new.id, new.items)]
            return new.changes(reply.response)[1:]

        try:
            await self.stored.write(*await self._services.off_loop.run(changes))
        except StoreError as error:
            logger.warning("a response was not kept: %s", error)
            reply.response["store"] = False
