"""Fields of requests under which a random checkpoint's replies are readable, and the same in every run."""

from __future__ import annotations

from typing import Any

# A bias towards lower-case letters and the space: readable ASCII, still decided by the model.
LETTERS = {str(i): 60 for i in (*range(97, 123), 32)}
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"repetition_penalty": 1.0}}
READABLE: dict[str, Any] = {**GREEDY, "logit_bias": LETTERS}
HI: list[Any] = [{"role": "user", "content": "Tell me something."}]
