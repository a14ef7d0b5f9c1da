"""The objects that the routes of one app share, in one typed container instead of globals."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.responses import Response

from model.contract.tokenizer import Tokenizer
from server.batches.runner import BatchRunner
from server.conversion.converter import Converter
from server.conversion.generation_request import GenerationRequest
from server.conversion.neutral_request import ChatRequest, TextRequest
from server.conversion.readers.unsupported import UnknownFields
from server.detached.runs import Runs
from server.engine.client import EngineClient
from server.files.stored_files import Uploads
from server.gates.admission import Admission
from server.gates.callers import Caller, caller_of
from server.gates.credentials import Credentials
from server.gates.direct_body import direct_body
from server.gates.rate_limits import RateLimiter
from server.gates.request_context import request_id_var
from server.gates.while_connected import while_connected
from server.off_loop import OffLoop
from server.replies.generation import Generation
from server.replies.streaming import EventsResponse, Reply, stream_events, whole_reply
from server.responses.background import Background
from server.responses.maker import ResponseMaker
from server.routes.web_files import WebFile, load_web_files
from server.settings import Settings
from server.store.store import Store
from server.telemetry.metrics import Metrics
from server.wire.errors import ApiError
from server.wire.shapes.generation import RequestBody

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Names in the error for a model that does not exist.
_MAX_NAMES_TOLD = 20
Sent = TypeVar("Sent", bound=RequestBody)


@dataclass(slots=True, kw_only=True)
class Services:
    """Everything a route may need.

    Attributes:
        settings: without secrets.
        runs: replies that go on without their clients.
        unknown_fields: logs fields of requests that no API has.
        background: makes the responses that nobody waits for.
        created: Unix time of the start, for /v1/models.
        web_files: files of the chat page, by name.
    """

    settings: Settings
    credentials: Credentials
    tokenizer: Tokenizer
    converter: Converter
    engine: EngineClient
    admission: Admission
    limiter: RateLimiter
    metrics: Metrics
    store: Store
    uploads: Uploads
    batches: BatchRunner
    runs: Runs = field(default_factory=Runs)
    unknown_fields: UnknownFields = field(default_factory=UnknownFields)
    responses: ResponseMaker = field(init=False)
    background: Background = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    web_files: Mapping[str, WebFile] = field(default_factory=load_web_files)

    def __post_init__(self) -> None:
        self.responses = ResponseMaker(self)
        self.background = Background(self, self.responses)

    @property
    def off_loop(self) -> OffLoop:
        """The threads for work on large requests."""
        return self.converter.encoder.off_loop

    def resolve_model(self, name: str | None) -> str:
        """Returns the model's name as replies carry it; `name` is the request's.

        Raises:
            ApiError: 404, there is no such model; the message names those there are.
        """
        names = self.settings.served_names
        if name is None:
            return names[0]
        if name in names or self.engine.adapters.find(name) is not None or self.settings.accepts_any_name:
            return name
        known = [*names, *(adapter.name for adapter in self.engine.adapters)]
        more = f" and {len(known) - _MAX_NAMES_TOLD} more" if len(known) > _MAX_NAMES_TOLD else ""
        raise ApiError(
            404,
            f"The model '{name[:200]}' does not exist; this server has {', '.join(known[:_MAX_NAMES_TOLD])}{more}.",
            code="model_not_found",
            param="model",
        )

    async def read(self, body: Sent, reader: Callable[[Sent], T]) -> T:
        """Returns a request in neutral form, as `reader` makes it from its API's wire object."""
        neutral = await self.off_loop.run(lambda: reader(body))
        self.unknown_fields.note(body)
        return neutral

    async def generate(
        self, http: Request, model: str, read: Callable[[], Coroutine[Any, Any, ChatRequest | TextRequest]]
    ) -> Generation:
        """Converts a request and hands it to the engine.

        Args:
            http: the HTTP request, whose body has been read.
            model: name that `resolve_model` returned.
            read: returns the request in neutral form; cancelled if the client leaves.

        Returns:
            The generation, which the caller must close in the end.

        Raises:
            InvalidRequestError: it cannot be served as asked.
            EngineUnavailableError: the engine would not serve it now.
            ApiError: too much waits already, or the client has left.
        """

        async def convert() -> GenerationRequest:
            engine = self.engine.require_ready()
            return await self.converter.convert(await read(), engine)

        caller = caller_of(http.scope)
        is_background = bool(http.scope["state"].get("is_background"))  # batches and background responses count theirs
        with nullcontext() if is_background else self.admission.reserve(caller):
            request = await while_connected(http.receive, convert())
            self._log_prompts(request)
            if not is_background:
                self.admission.check_prompt(caller, request.num_prompt_tokens)
            self.resolve_model(model)  # an adapter may have been unloaded meanwhile
            adapter = self.engine.adapters.find(model)
            handle = self.engine.submit(
                request.prompts,
                n=request.n,
                request_id=request_id_var.get(),
                priority=request.priority,
                caller=caller,
                cache_salt=self._cache_salt(caller, request.cache_salt),
                adapter_id=0 if adapter is None else adapter.adapter_id,
                is_background=is_background,
            )
        is_charged = self.limiter.has_limits and not is_background
        charge = partial(self.limiter.charge, caller.name) if is_charged else None
        if charge is not None:
            charge(request.num_prompt_tokens)
        return Generation(
            request,
            handle,
            self.tokenizer,
            self.metrics.of(self.settings.served_names[0] if adapter is None else adapter.name),
            arrived=http.scope["state"]["arrived"],
            timeout_s=None if is_background else self.settings.request_timeout_s,
            on_tokens=charge,
            is_background=is_background,
        )

    def _cache_salt(self, caller: Caller, salt: str) -> str:
        """Returns the salt of cached prompt starts: callers who share them can find out what the others sent."""
        owner = caller.name if caller.has_key and not self.settings.share_prefix_cache else ""
        return f"{owner}:{salt}" if owner or salt else ""

    async def respond(
        self,
        http: Request,
        generation: Generation,
        reply: Reply,
        *,
        stream: bool | None,
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> Response:
        """Answers a request that generates, and closes its generation.

        Args:
            http: the HTTP request; its body has been read.
            reply: how the API writes it.
            stream: as events; else whole.
            keep: awaited before the reply ends well.
        """
        if stream:
            return self.events(stream_events(generation, reply, keep, direct_body(http.scope)), close=generation.close)
        try:
            body = await while_connected(http.receive, whole_reply(generation, reply, keep))
            return Response(body, media_type="application/json")
        finally:
            generation.close()

    def events(self, events: AsyncGenerator[bytes, None], close: Callable[[], None] = lambda: None) -> EventsResponse:
        """Answers with events, and pings while there are none; calls `close` however the stream ends."""
        return EventsResponse(events, ping_interval_s=self.settings.ping_interval_s, close=close)

    async def prepare(self, http: Request, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of work like a generating request's (reading, encoding), counted in the queue like theirs.

        Args:
            http: the HTTP request, whose body has been read.
            work: cancelled if the client leaves.

        Raises:
            EngineUnavailableError: the engine would not serve it now.
            ApiError: too much waits already, or the client has left.
        """
        try:
            with self.admission.reserve(caller_of(http.scope)):
                return await while_connected(http.receive, work)
        finally:
            work.close()

    def _log_prompts(self, request: GenerationRequest) -> None:
        if self.settings.log_prompts:
            for prompt in request.prompts:
                text = self.tokenizer.decode(list(prompt.ids), show_special_tokens=True)
                logger.info("prompt", extra={"fields": {"text": text}})


# Both are coroutines because FastAPI runs plain functions on its threads, for each request.


async def get_services(request: Request) -> Services:
    """Returns the container of the app that serves a request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def get_caller(request: Request) -> Caller:
    """Returns whose request it is."""
    return caller_of(request.scope)


ServicesDep = Annotated[Services, Depends(get_services)]
CallerDep = Annotated[Caller, Depends(get_caller)]
