"""What the routes of one app share, in one typed container instead of globals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from model.contract.tokenizer import Tokenizer
from server.batches.runner import BatchRunner
from server.conversion.converter import Converter
from server.conversion.generation_request import GenerationRequest
from server.conversion.readers.unsupported import UnknownFields
from server.detached.runs import Runs
from server.engine.client import EngineClient
from server.files.stored_files import Uploads
from server.gates.admission import Admission
from server.gates.callers import Caller, caller_of
from server.gates.credentials import Credentials
from server.gates.rate_limits import RateLimiter
from server.gates.request_context import request_id_var
from server.gates.while_connected import while_connected
from server.off_loop import OffLoop
from server.replies.generation import Generation
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

# In the error for a model that does not exist.
_MAX_NAMES_TOLD = 20
Sent = TypeVar("Sent", bound=RequestBody)


@dataclass(slots=True, kw_only=True)
class Services:
    """Everything a route may need.

    Attributes:
        settings: of the HTTP side, without secrets.
        credentials: who may use the API.
        converter: understands requests.
        engine: generates.
        admission: decides who may wait for it.
        limiter: counts what each key asks for.
        metrics: counts.
        store: keeps what outlives a request.
        uploads: files that are coming in.
        batches: that are not over.
        runs: replies that go on without their clients.
        unknown_fields: told of each request, for the log.
        responses: makes responses.
        background: makes those that nobody waits for.
        created: Unix time of the start, for /v1/models.
        web_files: of the chat page, by name.
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
        """Makes what is made of the others."""
        self.responses = ResponseMaker(self)
        self.background = Background(self, self.responses)

    @property
    def off_loop(self) -> OffLoop:
        """Where large requests are worked on."""
        return self.converter.encoder.off_loop

    def resolve_model(self, name: str | None) -> str:
        """Returns the name replies carry.

        Raises:
            ApiError: 404, no such model, naming those there are.
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
        """Returns a request in neutral form.

        Args:
            body: as it came over the wire.
            reader: of its API; what it raises is raised.
        """
        neutral = await self.off_loop.run(lambda: reader(body))
        self.unknown_fields.note(body)
        return neutral

    async def generate(
        self, http: Request, model: str, convert: Callable[[], Coroutine[Any, Any, GenerationRequest]]
    ) -> Generation:
        """Waits until a request is understood and hands it to the engine.

        Args:
            http: it came by; its body has been read.
            model: of `resolve_model`.
            convert: what is to be generated; given up if the client leaves.

        Returns:
            What must be closed in the end, whatever happens.

        Raises:
            EngineUnavailableError: the engine would not serve it now.
            ApiError: too much waits already, or the client has left.
        """
        caller = caller_of(http.scope)
        is_background = bool(http.scope["state"].get("is_background"))  # who lets these in counts them
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
        """Says with whom cached prompt starts are shared: who finds one, or finds none, learns what others sent."""
        owner = caller.name if caller.has_key and not self.settings.share_prefix_cache else ""
        return f"{owner}:{salt}" if owner or salt else ""

    async def prepare(self, http: Request, work: Coroutine[Any, Any, T]) -> T:
        """Does for a request what generating ones need too, in a place of the queue like theirs.

        Args:
            http: it came by; its body has been read.
            work: given up if the client leaves.

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


def get_services(request: Request) -> Services:
    """Returns the container of the app that serves a request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
