"""Makes responses in the background to their end, whether or not their client, the engine or the server stays.

The store has a record of each response that has not ended, and a start of the server makes these again. They come out
the same: a response in the background always has a seed, and its events are one a token.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, cast

from fastapi import Request
from starlette.types import Message

from model.contract.errors import EngineUnavailableError, QwenServerError
from server.detached.event_log import RepeatedOtherwiseError
from server.detached.runs import Run
from server.engine.open_requests import MAX_ATTEMPTS
from server.engine.supervisor import EngineState
from server.gates.callers import Caller
from server.replies.generation import Generation
from server.replies.responses import ResponsesReply
from server.responses.maker import NewResponse, ResponseMaker
from server.responses.stored_responses import append_events, append_items, put_response
from server.store.errors import StoreError, StoreFullError
from server.store.records import Change, Delete, Put, StoredObject
from server.wire.errors import ApiError, as_api_error
from server.wire.shapes.responses import ResponseFailure, ResponseObject, ResponsesRequest

if TYPE_CHECKING:
    from server.services import Services

logger = logging.getLogger(__name__)

RECORD = "response_run"
_NOT_THE_SAME = ApiError(
    500,
    "The engine was lost, and a new one did not say the same again; please send it again.",
    type="server_error",
    code="server_error",
)
_POLL_S = 0.2
_TRY_AGAIN_S = 2.0
_NUM_TRIES = 10
_TOO_MANY = 429


class Background:
    """Makes responses in the background."""

    def __init__(self, services: Services, maker: ResponseMaker) -> None:
        self._services = services
        self._maker = maker
        self._stored = maker.stored
        self._lost: set[str] = set()

    async def create(self, http: Request, new: NewResponse) -> Run:
        """Begins a response; when this returns it is kept, and will be made.

        Raises:
            ApiError: too much waits, or goes on in the background.
            InvalidRequestError: it cannot be served as asked.
            EngineUnavailableError: the engine would not serve it now.
            StoreError: it cannot be kept.
        """
        generation: Generation | None = None
        inside = ExitStack()
        try:
            inside.enter_context(self._services.runs.room(new.caller))
            generation = await self._maker.generate(http, new)
            new.response = self._maker.reply(generation, new).response
            inside.enter_context(self._services.admission.enter(new.caller, 0))
            items = await self._services.off_loop.run(lambda: append_items(new.id, new.items))
            await self._stored.write(put_response(new.caller.owner, new.response), items, _record(new))
        except BaseException:
            if generation is not None:
                generation.close()
            inside.close()
            raise
        return self._start(new, generation, inside)

    def _start(self, new: NewResponse, generation: Generation | None, inside: ExitStack) -> Run:
        run = self._services.runs.start(new.id, new.caller, lambda run: self._make(run, new, generation), inside=inside)
        run.state = new.response
        return run

    async def resume(self) -> None:
        """Makes again what had not ended when the server did."""
        for record in await self._services.store.all_of(RECORD):
            try:
                new = await self._read_record(record)
            except (QwenServerError, ApiError, ValueError, KeyError, TypeError):
                logger.exception("the record %s in the store cannot be used", record.id)
                continue
            if new is None:
                await self._stored.write(Delete(record.id))
            else:
                logger.info("response %s had not ended and is made again", new.id)
                inside = ExitStack()
                inside.enter_context(self._services.runs.room(new.caller, math.inf))
                self._start(new, None, inside)

    async def _read_record(self, record: StoredObject) -> NewResponse | None:
        name, weight, has_key = record.body["caller"]
        caller = Caller(name, weight, has_key)
        response_id = record.body["response_id"]
        stored = await self._services.store.get(record.owner, "response", response_id)
        if stored is None:
            return None
        body = ResponsesRequest.model_validate(record.body["request"])
        items = await self._stored.items(record.owner, response_id)
        return NewResponse(body, cast(ResponseObject, stored.body), caller, items, record.body["num_before"])

    async def _make(self, run: Run, new: NewResponse, generation: Generation | None) -> None:
        """Makes a response to its end, from the start again where the engine is lost."""
        furthest = self._maker.reply(None, new)
        for attempt in itertools.count(1):
            reply: ResponsesReply | None = None
            try:
                if generation is None:
                    generation = await self._generate_again(new)
                reply = self._maker.reply(generation, new)
                run.state = reply.response
                await self._write(run, generation, reply)
                await self._keep(run, new, reply)
                return
            except asyncio.CancelledError:
                if not run.is_cancelled:
                    raise  # the server ends; the next one finds the record
                await self._give_up(run, new, _further(furthest, reply), None)
                return
            except Exception as error:
                furthest = _further(furthest, reply)
                if self._services.engine.state is EngineState.DRAINING and not isinstance(error, StoreError):
                    return  # as above
                if not isinstance(error, EngineUnavailableError) or attempt >= MAX_ATTEMPTS:
                    await self._give_up(run, new, furthest, error)
                    return
                run.log.rewind()
            finally:
                if generation is not None:
                    generation.close()
                generation = None

    async def _generate_again(self, new: NewResponse) -> Generation:
        """Hands a response to an engine once there is one."""

        async def receive() -> Message:
            await asyncio.get_running_loop().create_future()  # there is no client that could leave
            raise AssertionError

        while True:
            while self._services.engine.state is not EngineState.READY:
                if self._services.engine.state in (EngineState.DRAINING, EngineState.DEAD):
                    raise self._services.engine.unavailable()
                await asyncio.sleep(_POLL_S)
            state = {"caller": new.caller, "arrived": time.monotonic()}
            try:
                return await self._maker.generate(Request({"type": "http", "state": state}, receive), new)
            except ApiError as error:
                if error.status_code != _TOO_MANY:
                    raise
            await asyncio.sleep(_TRY_AGAIN_S)

    async def _write(self, run: Run, generation: Generation, reply: ResponsesReply) -> None:
        run.log.write(reply.beginning())
        async with aclosing(generation.deltas(by_token=True)) as all_deltas:
            async for deltas in all_deltas:
                run.log.write(reply.events(deltas, generation.usage))
        run.log.write(reply.finish(generation.usage()))

    async def _keep(self, run: Run, new: NewResponse, reply: ResponsesReply) -> None:
        """Keeps a response that is over, and only then says that it is."""
        run.is_ending = True
        changed = await self._services.off_loop.run(lambda: new.changes(reply.response))
        changes: list[Change] = [Delete(_record_id(new)), *changed]
        if run.log.events:
            changes.append(await asyncio.to_thread(append_events, new.id, list(run.log.events)))
        await self._write_with_retries(changes)
        run.log.write(reply.last())

    async def _write_with_retries(self, changes: Sequence[Change]) -> None:
        """Writes to the store, again where that fails, as a disk may for a while; a full one is reported at once."""
        for tries_left in reversed(range(_NUM_TRIES)):
            try:
                await self._stored.write(*changes)
                return
            except StoreFullError:
                raise
            except StoreError:
                if not tries_left:
                    raise
            await asyncio.sleep(_TRY_AGAIN_S)

    async def _give_up(self, run: Run, new: NewResponse, reply: ResponsesReply, error: Exception | None) -> None:
        """Ends a response that failed, or without an error one that was cancelled."""
        run.state = reply.response
        run.log.forward()
        if not reply.num_events:
            run.log.write(reply.beginning())
        if error is None:
            run.log.write(reply.cancel())
        else:
            api_error = _NOT_THE_SAME if isinstance(error, RepeatedOtherwiseError) else as_api_error(error)
            logger.warning("response %s failed: %s", new.id, api_error.message, exc_info=api_error.status_code == 500)
            run.log.write(reply.fail(api_error))
        try:
            await self._keep(run, new, reply)
        except StoreFullError:  # without its output, the ended response takes no more room than the record did
            reply.response["output"] = []
            await self._write_with_retries([Delete(_record_id(new)), put_response(new.caller.owner, reply.response)])
            run.log.write(reply.last())
        except StoreError:
            self._lost.add(new.id)
            raise

    def as_known(self, response: ResponseObject) -> ResponseObject:
        """Returns a kept response; one whose end could not be stored has failed, until a start makes it again."""
        if response["id"] not in self._lost or response["status"] not in ("queued", "in_progress"):
            return response
        error: ResponseFailure = {"code": "server_error", "message": "The end of this response could not be stored."}
        return {**response, "status": "failed", "error": error}


def _further(one: ResponsesReply, other: ResponsesReply | None) -> ResponsesReply:
    """Returns the one that has said more, of two replies that made the same response."""
    return one if other is None or other.num_events < one.num_events else other


def _record_id(new: NewResponse) -> str:
    return f"run_{new.hex}"


def _record(new: NewResponse) -> Put:
    """Keeps what a start needs to make the response again; its items lie beside the response."""
    request = new.body.model_dump(mode="json", exclude_none=True, exclude={"input"})
    body = {
        "response_id": new.id,
        "request": request,
        "caller": list(new.caller),
        "num_before": new.num_before,
    }
    return Put(StoredObject(id=_record_id(new), kind=RECORD, owner=new.caller.owner, body=body))
