"""The app on Ray Serve: `serve run server.ray_app:build model=Qwen/Qwen-7B-Chat num_replicas=2`.

Arguments are the server's settings under their names, and those of `server.cluster.options`. Needs the extra `ray`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
except ImportError as error:
    raise SystemExit(f"a cluster needs Ray Serve: pip install 'qwen-server[ray]' ({error})") from error

from server.cluster.front import Front
from server.cluster.metrics_board import MetricsBoard
from server.cluster.options import deployment_options, read_arguments
from server.cluster.replica import Replica, RoutedReplica
from server.cluster.router import PrefixRouter

_QUIET = {"enable_access_log": False}  # the server writes a line a request itself


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """Returns the application that `serve run` and Ray Serve's configuration files start.

    Args:
        arguments: settings of the server and options of the cluster, by name.

    Raises:
        ConfigError: an argument cannot be used.
    """
    options, settings = read_arguments(arguments, os.environ)
    settings.credentials()  # a key file that cannot be read is an error here, not in each replica
    how = deployment_options(options, settings)
    board = serve.deployment(name="metrics", num_replicas=1, ray_actor_options={"num_cpus": 0}, logging_config=_QUIET)(
        MetricsBoard
    ).bind()
    if not options.route_by_prefix:
        return serve.deployment(name="qwen-server", logging_config=_QUIET, **how)(serve.ingress()(Replica)).bind(
            settings, board
        )
    router = RequestRouterConfig(request_router_class=PrefixRouter)
    server = serve.deployment(name="qwen-server", request_router_config=router, logging_config=_QUIET, **how)(
        RoutedReplica
    )
    front = serve.deployment(
        name="front",
        num_replicas=options.num_fronts,
        max_ongoing_requests=how["max_ongoing_requests"] * max(options.num_replicas, options.max_replicas or 1),
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=how["graceful_shutdown_timeout_s"],
        logging_config=_QUIET,
    )(serve.ingress()(Front))
    return front.bind(server.bind(settings, board), settings.max_body_bytes, settings.trusted_proxy)
