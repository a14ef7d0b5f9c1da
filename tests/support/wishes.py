"""Requests under which a random checkpoint says something that tests can work with."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings

# A bias towards lower-case letters and the space: readable ASCII, still decided by the model.
LETTERS = {str(i): 60 for i in (*range(97, 123), 32)}
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"repetition_penalty": 1.0}}
READABLE: dict[str, Any] = {**GREEDY, "logit_bias": LETTERS}
HI: list[Any] = [{"role": "user", "content": "Tell me something."}]

# Of tests that draw many requests at once and send them together: the same ones each time, and no shrinking, for each
# try takes seconds; a failure names its request.
BATCHES = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
