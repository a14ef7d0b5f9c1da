"""How much each key may ask for in a minute, in requests and in tokens.

Buckets that fill evenly: a key may spend a minute's worth at once, and then what comes in. Tokens are taken when they
are known, those of a prompt at the start and those of a reply as they come, so a bucket may fall below zero, and has to
fill again before the next request. Without keys, callers are told apart by their address.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from server.wire.errors import rate_limited

_MINUTE_S = 60.0
_MAX_CALLERS = 10_000
# So many of them are kept at least when there are too many, so that not every new caller has all looked at.
_KEPT_CALLERS = 0.9


@dataclass(slots=True)
class _Bucket:
    """One caller's requests, or tokens: `left` of at most `per_minute`."""

    per_minute: int
    left: float
    updated: float = field(default_factory=lambda: time.monotonic())

    def refill(self) -> None:
        now = time.monotonic()
        self.left = min(self.per_minute, self.left + (now - self.updated) * self.per_minute / _MINUTE_S)
        self.updated = now

    def seconds_until(self, amount: float) -> float:
        return max(0.0, amount - self.left) * _MINUTE_S / self.per_minute


class RateLimiter:
    """Limits each caller.

    Args:
        requests_per_minute: most requests of one caller; None is no limit.
        tokens_per_minute: most tokens of one caller, prompts and replies together; None is no limit.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._callers: dict[str, dict[str, _Bucket]] = {}

    @property
    def has_limits(self) -> bool:
        """Whether anything is limited at all."""
        return any(limit is not None for limit in self._limits.values())

    def admit(self, caller: str) -> None:
        """Takes a request.

        Raises:
            ApiError: 429, the caller has none left; it says in how many seconds there will be one.
        """
        buckets = self._buckets(caller)
        for kind, bucket in buckets.items():
            bucket.refill()
            wait_s = bucket.seconds_until(1)
            if wait_s > 0:
                raise rate_limited(
                    f"This key's limit of {bucket.per_minute} {kind} a minute is used up; please try again in "
                    f"{wait_s:.1f} s.",
                    retry_after_s=math.ceil(wait_s),
                )
        if "requests" in buckets:
            buckets["requests"].left -= 1

    def charge(self, caller: str, num_tokens: int) -> None:
        """Takes tokens that were spent."""
        bucket = self._buckets(caller).get("tokens")
        if bucket is not None:
            bucket.refill()
            bucket.left -= num_tokens

    def _buckets(self, caller: str) -> dict[str, _Bucket]:
        buckets = self._callers.get(caller)
        if buckets is None:
            if len(self._callers) >= _MAX_CALLERS:
                self._forget_idle()
            buckets = {kind: _Bucket(limit, limit) for kind, limit in self._limits.items() if limit is not None}
            self._callers[caller] = buckets
        return buckets

    def _forget_idle(self) -> None:
        """Drops callers whose buckets are full; where too few are, those who came first."""
        for caller, buckets in list(self._callers.items()):
            for bucket in buckets.values():
                bucket.refill()
            if all(bucket.left >= bucket.per_minute for bucket in buckets.values()):
                del self._callers[caller]
        for caller in list(self._callers)[: max(0, len(self._callers) - int(_KEPT_CALLERS * _MAX_CALLERS))]:
            del self._callers[caller]
