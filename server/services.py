"""What the routes of one app share, in one typed container instead of globals."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from model.tokenizer import Tokenizer
from server.conversion import Converter
from server.engine_client import EngineClient
from server.errors import ApiError, server_overloaded
from server.generation import Generation
from server.generation_request import GenerationRequest
from server.metrics import Metrics
from server.request_context import request_id_var
from server.server_config import ServerConfig
from server.web_files import WebFile, load_web_files

logger = logging.getLogger(__name__)


class Admission:
    """Decides whether a request may wait, and when one that may not should come back.

    Args:
        engine: knows who waits.
        max_queue_requests: the most that may wait for a first token.
    """

    def __init__(self, engine: EngineClient, max_queue_requests: int) -> None:
        self._engine = engine
        self._max_queue_requests = max_queue_requests
        self._admitted_at: deque[float] = deque(maxlen=256)

    def check(self) -> None:
        """Admits a request.

        Raises:
            EngineUnavailableError: the engine would not serve it now.
            ApiError: 429, too many wait already.
        """
        self._engine.require_ready()
        waiting = self._engine.num_unstarted_requests
        if waiting >= self._max_queue_requests:
            raise server_overloaded(
                f"{waiting} requests are waiting already; please try again later.",
                retry_after_s=self._retry_after_s(waiting),
            )
        self._admitted_at.append(time.monotonic())

    def _retry_after_s(self, waiting: int) -> int:
        """A guess: with a full queue, requests are admitted at the rate at which others get their first token."""
        if len(self._admitted_at) < 2:
            return 1
        seconds = time.monotonic() - self._admitted_at[0]
        return math.ceil(waiting / 2 * seconds / len(self._admitted_at))


@dataclass(slots=True, kw_only=True)
class Services:
    """Everything a route may need.

    Attributes:
        config: of the HTTP side.
        tokenizer: of the checkpoint.
        converter: understands requests.
        engine: generates.
        metrics: counts.
        created: Unix time of the start, for /v1/models.
        web_files: of the chat page, by name.
    """

    config: ServerConfig
    tokenizer: Tokenizer
    converter: Converter
    engine: EngineClient
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))
    web_files: Mapping[str, WebFile] = field(default_factory=load_web_files)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.engine, self.config.max_queue_requests)

    def resolve_model(self, asked: str | None) -> str:
        """Returns the name replies carry.

        Raises:
            ApiError: 404, no such model, naming those there are.
        """
        names = self.config.served_names
        if asked is None:
            return names[0]
        if asked in names:
            return asked
        raise ApiError(
            404,
            f"The model '{asked[:200]}' does not exist; this server has {', '.join(names)}.",
            code="model_not_found",
            param="model",
        )

    def admit(self) -> None:
        """Refuses a request that could not be served soon, before any work is done for it.

        Raises:
            EngineUnavailableError: the engine would not serve it now.
            ApiError: too many requests wait.
        """
        try:
            self.admission.check()
        except ApiError as error:
            self.metrics.count_rejected(error.code or "")
            raise

    def generate(self, http: Request, request: GenerationRequest) -> Generation:
        """Hands a request to the engine.

        Args:
            http: it came by.
            request: what to generate.

        Returns:
            What must be closed in the end, whatever happens.

        Raises:
            EngineUnavailableError: the engine would not serve it now.
        """
        if self.config.log_prompts:
            for prompt in request.prompts:
                text = self.tokenizer.decode(list(prompt.ids), show_special_tokens=True)
                logger.info("prompt", extra={"fields": {"text": text}})
        handle = self.engine.submit(
            request.prompts, n=request.n, request_id=request_id_var.get(), priority=request.priority
        )
        return Generation(
            request,
            handle,
            self.tokenizer,
            self.metrics,
            arrived=http.scope["state"]["arrived"],
            timeout_s=self.config.request_timeout_s,
        )


def get_services(request: Request) -> Services:
    """Returns the container of the app that serves a request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
