"""Guesses what a path without a route was meant to be: a prefix too few or too many, or what only OpenAI serves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_INSTEAD = "this server generates text, with POST /v1/chat/completions and POST /v1/completions"
# Beginnings of paths, and what to say about them.
_NOT_SERVED = {
    "/v1/embeddings": f"These models make no embeddings; {_INSTEAD}.",
    "/v1/audio": f"These models neither hear nor speak; {_INSTEAD}.",
    "/v1/images": f"These models neither see nor draw; {_INSTEAD}.",
    "/v1/videos": f"These models make no videos; {_INSTEAD}.",
    "/v1/realtime": f"These models neither hear nor speak; {_INSTEAD}, also streamed.",
    "/v1/moderations": f"These models do not moderate; {_INSTEAD}.",
    **dict.fromkeys(("/v1/rerank", "/v1/score"), f"These models do not rank texts; {_INSTEAD}."),
    **dict.fromkeys(
        ("/v1/assistants", "/v1/threads"),
        f"The Assistants API is not served; {_INSTEAD}, tools and tool results included.",
    ),
    "/v1/fine_tuning": f"Nothing is trained here; {_INSTEAD}.",
}


def missing_route(path: str, routes: Iterable[str]) -> str:
    """Returns what to say about a path without a route; of `routes`, those with parameters are not guessed at."""
    known = [*(route for route in routes if "{" not in route), *_NOT_SERVED]
    meant = _meant(path.rstrip("/"), [route for route in known if route not in ("/", path)])
    sentence = next((text for start, text in _NOT_SERVED.items() if _is_below(meant or path, start)), None)
    if sentence is not None:
        return sentence if meant is None else f"No such route; did you mean {meant}? {sentence}"
    if meant is not None:
        return f"No such route; did you mean {meant}?"
    return "No such route; GET /docs lists those there are."


def _meant(path: str, routes: Sequence[str]) -> str | None:
    """Returns the shortest route that ends with the path, or else the longest with which the path ends."""
    longer = [route for route in routes if len(path) > 1 and route.endswith(path)]
    if longer:
        return min(longer, key=len)
    return max((route for route in routes if path.endswith(route)), key=len, default=None)


def _is_below(path: str, start: str) -> bool:
    return path == start or path.startswith(start + "/")
