"""Arguments of `build`: how many replicas there are and where they run; all others are settings of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.contract.errors import ConfigError
from server.config.sources import load_settings
from server.settings import Settings
from server.telemetry.tracing import require_tracing

# Requests that are on their way to a replica when it begins to go.
_DRAIN_MARGIN_S = 10.0


class ClusterOptions(BaseModel):
    """Arguments of `build` that are not the server's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_replicas: int = Field(1, ge=0, description="servers, each with an engine of its own")
    max_replicas: int | None = Field(None, ge=1, description="scale between num_replicas and so many, by requests")
    target_ongoing_requests: float = Field(
        32, gt=0, description="running and waiting requests a replica should have when they are scaled"
    )
    upscale_delay_s: float = Field(30, ge=0, description="how long more are asked for before one is added")
    downscale_delay_s: float = Field(600, ge=0, description="how long fewer are enough before one goes")
    route_by_prefix: bool = Field(
        False,
        description="send a conversation where its start is in the cache, by way of a process before the replicas",
    )
    num_fronts: int = Field(1, ge=1, description="processes that route by prefix")
    num_cpus: float = Field(1, ge=0, description="CPUs that Ray keeps for a replica")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs that Ray keeps for a replica (default: one a rank, where device is not cpu)"
    )

    @model_validator(mode="after")
    def _bounds(self) -> ClusterOptions:
        if self.max_replicas is not None and self.max_replicas < max(1, self.num_replicas):
            raise ValueError("max_replicas must be at least num_replicas")
        return self


def read_arguments(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[ClusterOptions, Settings]:
    """Separates options from settings and checks both, before anything is started.

    Args:
        arguments: arguments of `serve run`, where all values are text, or of a configuration file.
        environ: environment of the process that builds the application, for its QWEN_SERVER_ variables.

    Raises:
        ConfigError: a name is unknown or a value bad; one line.
    """
    given = {name.replace("-", "_"): value for name, value in arguments.items()}
    own = {name: given.pop(name) for name in ClusterOptions.model_fields if name in given}
    try:
        options = ClusterOptions.model_validate(own)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise ConfigError(where + str(first["msg"]).removeprefix("Value error, ")) from error
    config_file = given.pop("config", None)
    # Ray's proxy receives requests under any host name, and listens where Ray is told to.
    settings = load_settings({"host": "0.0.0.0", **given}, environ, config_file)
    if settings.ssl_certfile is not None:
        raise ConfigError("ssl_certfile would not be used: give Ray's proxy the certificate, in its http_options")
    if settings.otel_endpoint is not None:
        require_tracing()
    if settings.allow_lora_updates and max(options.num_replicas, options.max_replicas or 0) > 1:
        raise ConfigError("allow_lora_updates would load an adapter on one of the replicas only; name them with lora")
    return options, settings


def deployment_options(options: ClusterOptions, settings: Settings) -> dict[str, Any]:
    """Returns Ray Serve's options for the deployment of servers."""
    num_gpus = options.num_gpus
    if num_gpus is None:
        num_ranks = settings.tensor_parallel_size * settings.pipeline_parallel_size
        num_gpus = num_ranks if settings.device != "cpu" and _has_gpus() else 0
    scaling: dict[str, Any]
    if options.max_replicas is None:
        scaling = {"num_replicas": options.num_replicas}
    else:
        scaling = {
            "autoscaling_config": {
                "min_replicas": options.num_replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": options.target_ongoing_requests,
                "upscale_delay_s": options.upscale_delay_s,
                "downscale_delay_s": options.downscale_delay_s,
            }
        }
    return {
        **scaling,
        "ray_actor_options": {"num_cpus": options.num_cpus},
        # One bundle is on one machine, whose links the ranks of a replica use.
        "placement_group_bundles": [{"CPU": options.num_cpus, **({"GPU": num_gpus} if num_gpus else {})}],
        "placement_group_strategy": "STRICT_PACK",
        # The server has a queue of its own, shared fairly; Ray's is only for requests that it would refuse.
        "max_ongoing_requests": settings.max_num_seqs + settings.max_queue_requests,
        "graceful_shutdown_timeout_s": settings.shutdown_timeout_s + _DRAIN_MARGIN_S,
        "graceful_shutdown_wait_loop_s": 1.0,
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 30.0,
    }


def _has_gpus() -> bool:
    import ray

    return bool(ray.is_initialized() and ray.cluster_resources().get("GPU"))
