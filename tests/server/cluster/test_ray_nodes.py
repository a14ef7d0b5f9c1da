"""Replicas on several nodes, one each: with a lost node only its own replica is gone, until it is replaced."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.cluster.test_ray_serve import SETTINGS, all_said, per_replica, requests, until
from tests.support.paths import ROOT

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

TOKENS = "vllm:generation_tokens_total"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that takes no replicas, and two nodes with room for one each; all on this machine."""
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    environment = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(address=nodes.address, logging_level="error", runtime_env={"env_vars": environment})
    try:
        yield nodes
    finally:
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


def test_a_node_that_is_lost(cluster: Any, demo_checkpoint: Path) -> None:
    from server.ray_app import build

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    settings = {**SETTINGS, "num_cpus": 1, "model": str(demo_checkpoint), "num_replicas": 2}
    serve.run(build(settings), name="qwen")
    url = f"http://127.0.0.1:{port}"
    assert len(nodes_of_replicas()) == 2, "one replica a node"
    bodies = requests(40)
    before = all_said(url, bodies)
    until(lambda: sum(count > 20 for count in per_replica(url, TOKENS).values()) == 2)

    lost = next(node for node in cluster.list_all_nodes() if node.node_id in nodes_of_replicas())
    cluster.remove_node(lost, allow_graceful=False)
    until(lambda: answers(url, bodies[0]), 120)  # a request that was on its way there may end with an error
    assert all_said(url, bodies) == before, "the other one serves all"

    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    until(lambda: len(nodes_of_replicas()) == 2, 120)
    assert all_said(url, bodies) == before


def nodes_of_replicas() -> set[str]:
    """Ids of the nodes where a server runs."""
    actors = ray._private.state.actors().values()
    alive = [actor for actor in actors if actor["State"] == "ALIVE"]
    return {actor["Address"]["NodeID"] for actor in alive if "qwen-server" in actor["ActorClassName"]}


def answers(url: str, body: dict[str, Any]) -> bool:
    """Whether a few requests in a row are answered."""
    for _ in range(6):
        try:
            response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        except httpx.TransportError:
            return False
        if response.status_code != 200:
            return False
    return True
