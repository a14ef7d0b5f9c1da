"""Models, adapters and the server itself: what is told of them, and requests to change adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from typing_extensions import TypedDict

from server.wire.shapes.generation import RequestBody


class LoadAdapterRequest(RequestBody):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(max_length=256, description="what requests will name as their model")
    lora_path: str = Field(max_length=4096, description="folder, or hub id; below --lora-root where that is set")
    load_inplace: bool | None = Field(None, description="let the name go over from the adapter that has it")


class UnloadAdapterRequest(RequestBody):
    """POST /v1/unload_lora_adapter."""

    lora_name: str = Field(max_length=256, description="the adapter's name; requests that have it already finish")


class Model(TypedDict):
    """A name of the model, or a LoRA adapter: `root` is where that is from, and `parent` the model it belongs to."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class ModelList(TypedDict):
    """All names."""

    object: Literal["list"]
    data: list[Model]


class State(TypedDict):
    """State of the engine."""

    status: str


class Version(TypedDict):
    """Version of the server, and the commit it was built from."""

    version: str
    commit: str | None
