"""HTTP client for the files and batches of a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from model.contract.errors import StartupError

_NUM_TRIES = 5
_TIMEOUT_S = 600.0


class BatchCommandError(StartupError):
    """The command cannot continue; the message is the line that is shown."""


class BatchClient:
    """Client for a server's files and batches.

    Args:
        base_url: with or without /v1.
        why_it_ended: for a server that this command started: returns why it ended, or None while it runs.
    """

    def __init__(
        self, base_url: str, api_key: str | None, why_it_ended: Callable[[], str | None] = lambda: None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        self._why_it_ended = why_it_ended

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def find_or_create(self, mark: str, parts: Sequence[tuple[str, bytes]]) -> list[dict[str, Any]]:
        """Returns a batch for each part: a usable one from an earlier run, or a new one.

        Args:
            mark: identifies input and output; it is stored in the batches' metadata.
            parts: endpoint and lines of each batch.
        """
        found: dict[str, dict[str, Any]] = {}
        for batch in self._all_batches():
            metadata = batch.get("metadata") or {}
            if metadata.get("mark") == mark and self._is_usable(batch):
                found.setdefault(metadata["part"], batch)
        return [
            found.get(str(number)) or self._create(url, text, {"mark": mark, "part": str(number)})
            for number, (url, text) in enumerate(parts)
        ]

    def _all_batches(self) -> list[dict[str, Any]]:
        batches: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": 100}
        while True:
            page = self._ask("GET", "/batches", params=query).json()
            batches += page["data"]
            if not page["has_more"]:
                return batches
            query["after"] = page["last_id"]

    def _is_usable(self, batch: dict[str, Any]) -> bool:
        if batch["status"] in ("failed", "expired", "cancelling", "cancelled"):
            return False
        files = [batch[name] for name in ("output_file_id", "error_file_id") if batch[name]]
        return all(self._http.get(f"/files/{id}").status_code == 200 for id in files)

    def _create(self, url: str, text: bytes, metadata: dict[str, str]) -> dict[str, Any]:
        file = self._ask("POST", "/files", data={"purpose": "batch"}, files={"file": ("part.jsonl", text)}).json()
        body = {"input_file_id": file["id"], "endpoint": url, "completion_window": "30d", "metadata": metadata}
        return dict(self._ask("POST", "/batches", json=body).json())

    def batch(self, id: str) -> dict[str, Any]:
        """Returns the present state of a batch."""
        return dict(self._ask("GET", f"/batches/{id}").json())

    def content(self, id: str | None) -> bytes:
        """Returns a file's content; empty for None."""
        return b"" if id is None else self._ask("GET", f"/files/{id}/content").content

    def clean_up(self, batches: Sequence[dict[str, Any]]) -> None:
        """Deletes the batches' files."""
        for batch in batches:
            for name in ("input_file_id", "output_file_id", "error_file_id"):
                if batch[name]:
                    self._http.delete(f"/files/{batch[name]}")

    def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        """Sends a request, with retries while the server is busy or away, and returns the successful response.

        Raises:
            BatchCommandError: the server refused, or did not answer in time.
        """
        for attempt in range(_NUM_TRIES):
            try:
                response = self._http.request(method, path, **what)
            except httpx.HTTPError as error:
                problem = f"{self._http.base_url} does not answer: {error or type(error).__name__}"
            else:
                if response.is_success:
                    return response
                problem = _message(response)
                if response.status_code not in (429, 502, 503, 504):
                    break
            if (words := self._why_it_ended()) is not None:
                raise BatchCommandError(words)
            time.sleep(2**attempt / 2)
        raise BatchCommandError(problem)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answered {response.status_code}"
