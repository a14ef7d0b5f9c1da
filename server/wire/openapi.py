"""The OpenAPI document, made true: FastAPI announces its own 422, which no route of ours ever answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi


def install_openapi(app: FastAPI) -> None:
    """Makes the app's document say only what its routes do."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    _name_bounds(document["components"]["schemas"])
    return document


# What pydantic calls a bound of a value that a function of ours has looked at before.
BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def _name_bounds(node: Any) -> None:
    """Gives bounds the names that JSON schema has for them, everywhere below a schema."""
    if isinstance(node, list):
        for item in node:
            _name_bounds(item)
    if isinstance(node, dict):
        for name, keyword in BOUNDS.items():
            if isinstance(node.get(name), int | float):
                bound = node.pop(name)
                for branch in node.get("anyOf", [node]):
                    if branch.get("type") in ("integer", "number"):
                        branch[keyword] = bound
        for value in node.values():
            _name_bounds(value)
