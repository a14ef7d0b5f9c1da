"""Metrics of all replicas in one answer: each reports its own every few seconds, and any of them answers for all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

_INTERVAL_S = 2.0
# A replica that has been silent for so long is gone.
_FORGET_AFTER_S = 15.0
_TIMEOUT_S = 5.0


class MetricsBoard:
    """Holds each replica's last report. A deployment of one replica, which Ray replaces when it is lost."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, str]] = {}

    def tell(self, replica: str, text: str) -> None:
        """Takes a replica's metrics, in Prometheus's text format."""
        self._told[replica] = (time.monotonic(), text)
        self._drop_silent()

    def forget(self, replica: str) -> None:
        """Drops a replica that has ended."""
        self._told.pop(replica, None)

    def all(self) -> dict[str, str]:
        """Returns the metrics of each replica that has reported of late."""
        self._drop_silent()
        return {name: text for name, (_, text) in self._told.items()}

    def _drop_silent(self) -> None:
        oldest = time.monotonic() - _FORGET_AFTER_S
        self._told = {name: entry for name, entry in self._told.items() if entry[0] > oldest}


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from families.values()


def merge(texts: Mapping[str, str]) -> bytes:
    """Returns the metrics of several servers, by their names, as one text: each sample gets the label `replica`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(texts))
    return generate_latest(registry)


class MetricsRoute:
    """Answers /metrics for all replicas; everything else goes to the app of this one.

    Args:
        board: deployment of the `MetricsBoard`.
        replica: name of this replica.
    """

    def __init__(self, app: Any, board: Any, replica: str) -> None:
        self._app: ASGIApp = app
        self._own = app.state.services.metrics
        self._board = board
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["path"] != scope.get("root_path", "") + "/metrics":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                texts = await self._board.all.remote()
        except Exception as error:  # the board is being replaced; this replica's metrics are better than none
            logger.warning("metrics of the other replicas are not at hand: %s", error)
            texts = {}
        texts[self._replica] = self._own.render().decode()
        await Response(merge(texts), media_type=CONTENT_TYPE_LATEST)(scope, receive, send)

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Reports this replica's metrics while the context lasts."""
        task = asyncio.create_task(self._report(), name="metrics report")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._board.forget.remote(self._replica)

    async def _report(self) -> None:
        while True:
            try:
                await self._board.tell.remote(self._replica, self._own.render().decode())
            except Exception as error:
                logger.warning("metrics could not be told: %s", error)
            await asyncio.sleep(_INTERVAL_S)
