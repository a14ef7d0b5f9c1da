"""Ray Serve's router for replicas that are chosen by their cache."""

from __future__ import annotations

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from server.cluster.prefix_routing import rank

# A replica that has so many requests more than the one with the fewest comes last.
_MAX_AHEAD = 8


class PrefixRouter(FIFOMixin, RequestRouter):
    """Chooses by the key that a front passes as `key`."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Returns the replicas in the order to try them, one at a time."""
        key = None if pending_request is None else pending_request.kwargs.get("key")
        if key is None:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        lengths = {name: self.replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in by_name.items()}
        most = min(lengths.values(), default=0) + _MAX_AHEAD
        order = sorted(rank(key, list(by_name)), key=lambda name: lengths[name] > most)
        return [[by_name[name]] for name in order]
