"""Generates the requests of a load: lengths, prompts, request bodies and arrival times.

The same seed gives the same lengths, arrivals and shared prefix. The rest of each prompt is always random: otherwise
a second run against the same server would find its prompts in the prefix cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tools.bench.arguments import CHAT, COMPLETIONS
from tools.bench.lengths import Lengths

Body = dict[str, Any]

PATHS = {CHAT: "/chat/completions", COMPLETIONS: "/completions"}

_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
).split()


class WordScale(NamedTuple):
    """The number of tokens of some words, measured on the server: `overhead + per_word * words`."""

    per_word: float
    overhead: float

    @classmethod
    def fit(cls, few: tuple[int, int], many: tuple[int, int]) -> WordScale:
        """Returns the line through two measurements of (words, tokens)."""
        per_word = max((many[1] - few[1]) / (many[0] - few[0]), 0.1)
        return cls(per_word, max(few[1] - per_word * few[0], 0.0))

    def words(self, num_tokens: int) -> int:
        """Returns how many words make about this many tokens; at least one."""
        return max(1, round((num_tokens - self.overhead) / self.per_word))


ONE_TO_ONE = WordScale(1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Generates request bodies.

    Attributes:
        endpoint: "chat" or "completions".
        prompt_tokens: length of a prompt without the shared prefix.
        shared_prefix_tokens: length of the prefix that all prompts of a seed have in common.
        prompt_kind: "ids" (completions only: exact, needs no tokenizer) or "words".
        token_ids: first and last token id in prompts. The default ids are single bytes in Qwen's vocabulary, never
            control tokens.
        temperature: if above 0, each request gets a seed of its own.
        ignore_eos: generate exactly `max_tokens`.
        stream: ask for a stream, with the usage at its end.
        extra: added to each body; overrides the fields above.
        seed: of lengths, shared prefix and sampling.
    """

    endpoint: str
    model: str
    prompt_tokens: Lengths
    max_tokens: Lengths
    shared_prefix_tokens: int = 0
    prompt_kind: str = "words"
    token_ids: tuple[int, int] = (33, 255)
    scale: WordScale = ONE_TO_ONE
    temperature: float = 0.0
    ignore_eos: bool = False
    stream: bool = True
    extra: Mapping[str, Any] | None = None
    seed: int = 0

    def bodies(self, count: int, *, part: str) -> Iterator[bytes]:
        """Yields JSON bodies; the same `part` of a run ("warm-up", "measured") gets the same lengths."""
        generator = random.Random(f"{self.seed} {part}")
        fresh = random.Random()
        for _ in range(count):
            num_prompt, num_output = self.prompt_tokens.draw(generator), self.max_tokens.draw(generator)
            body: Body = {"model": self.model, "max_tokens": num_output, "temperature": self.temperature}
            if self.prompt_kind == "ids":
                body["prompt"] = self._ids(num_prompt, fresh)
            elif self.endpoint == CHAT:
                body["messages"] = [{"role": "user", "content": self._text(num_prompt, fresh)}]
            else:
                body["prompt"] = self._text(num_prompt, fresh)
            if self.temperature > 0:
                body["seed"] = generator.getrandbits(31)
            if self.ignore_eos:
                body["ignore_eos"] = True
            yield orjson.dumps(with_stream(body | dict(self.extra or {}), self.stream))

    def _ids(self, num_tokens: int, fresh: random.Random) -> list[int]:
        choices = range(self.token_ids[0], self.token_ids[1] + 1)
        return self._shared().choices(choices, k=self.shared_prefix_tokens) + fresh.choices(choices, k=num_tokens)

    def _text(self, num_tokens: int, fresh: random.Random) -> str:
        num_shared = round(self.shared_prefix_tokens / self.scale.per_word)
        shared = self._shared().choices(_WORDS, k=num_shared)
        return " ".join(shared + fresh.choices(_WORDS, k=self.scale.words(num_tokens)))

    def _shared(self) -> random.Random:
        return random.Random(f"{self.seed} shared")


def words(count: int) -> str:
    """Returns random words, to measure a `WordScale` with."""
    return " ".join(random.Random().choices(_WORDS, k=count))


def with_stream(body: Body, stream: bool) -> Body:
    """Returns the body, asking for a stream with the usage at its end, or for a single object."""
    if not stream:
        return {key: value for key, value in body.items() if key != "stream_options"} | {"stream": False}
    options = body.get("stream_options") or {}
    return body | {"stream": True, "stream_options": options | {"include_usage": True}}


def read_bodies(path: Path, endpoint: str, model: str, *, force_model: bool, stream: bool) -> list[bytes]:
    """Reads bodies from a file, one JSON object per line; lines of OpenAI's batch files have them under "body".

    Args:
        endpoint: "chat" or "completions".
        model: set in bodies that name no model.
        force_model: set the model in all bodies.
        stream: overrides what the bodies ask for.

    Raises:
        ValueError: a line is not such an object, or there are none.
    """
    field = "messages" if endpoint == CHAT else "prompt"
    bodies = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            body = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        if isinstance(body, dict) and isinstance(body.get("body"), dict):
            body = body["body"]
        if not isinstance(body, dict) or field not in body:
            raise ValueError(f'{path}:{number}: not a body for --endpoint {endpoint}: it has no "{field}"')
        if force_model or "model" not in body:
            body["model"] = model
        bodies.append(orjson.dumps(with_stream(body, stream)))
    if not bodies:
        raise ValueError(f"{path}: holds no requests")
    return bodies


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Returns the arrival times, in seconds, of a Poisson process with `rate` requests per second on average."""
    generator = random.Random(f"{seed} arrivals")
    times: list[float] = []
    now = 0.0
    for _ in range(count):
        now += generator.expovariate(rate)
        times.append(now)
    return times


def cycled(bodies: Sequence[bytes], count: int) -> list[bytes]:
    """Returns `count` bodies, repeating them from the first if there are fewer."""
    return [bodies[i % len(bodies)] for i in range(count)]
