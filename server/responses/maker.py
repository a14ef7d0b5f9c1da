"""Makes responses: joins kept items and new ones for a generation, and keeps what comes of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from server.conversion.neutral_request import ChatRequest
from server.conversion.readers.responses import new_items, read_responses
from server.gates.callers import Caller
from server.replies.generation import Generation
from server.replies.responses import ResponsesReply
from server.responses.stored_responses import StoredResponses, append_items, put_response, with_ids
from server.store.errors import StoreError
from server.store.records import Change
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.responses import ResponseObject, ResponsesRequest

if TYPE_CHECKING:
    from server.services import Services

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class NewResponse:
    """A response on its way.

    Attributes:
        response: the object that clients see before anything is done.
        items: the whole conversation, up to what was sent now.
        num_before: how many of the items were kept before.
    """

    body: ResponsesRequest
    response: ResponseObject
    caller: Caller
    items: Sequence[JsonObject] = ()
    num_before: int = 0

    @property
    def id(self) -> str:
        """The response's id."""
        return self.response["id"]

    @property
    def hex(self) -> str:
        """The digits of its id, with which the ids of its items begin."""
        return self.id.partition("_")[2]

    def changes(self, response: ResponseObject) -> list[Change]:
        """Returns what keeps a response that is over, as it is now, in a conversation with its items."""
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
        """Reads what the response goes on from into `new`, and hands it to the engine.

        Raises:
            ApiError: something is not kept here, or too much waits.
            InvalidRequestError: it cannot be served as asked.
            EngineUnavailableError: the engine would not serve it now.
        """

        async def read() -> ChatRequest:
            if not new.items:
                await self._find_items(new)
            return await self._services.read(new.body, lambda body: read_responses(body, new.items))

        return await self._services.generate(http, new.response["model"], read)

    async def _find_items(self, new: NewResponse) -> None:
        body, owner = new.body, new.caller.owner
        before: list[JsonObject] = []
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
        """Returns what writes the response."""
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
