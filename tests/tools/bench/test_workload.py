"""What is asked for: lengths, prompts, arrivals."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from tools.bench.lengths import Lengths
from tools.bench.workload import WordScale, Workload, poisson_arrivals, read_bodies


def workload(**wishes: Any) -> Workload:
    defaults = {"endpoint": "completions", "model": "m", "prompt_tokens": Lengths(64, 64), "max_tokens": Lengths(8, 8)}
    return Workload(**(defaults | wishes))


def bodies(load: Workload, count: int = 20, part: str = "measured") -> list[dict[str, Any]]:
    return [json.loads(body) for body in load.bodies(count, part=part)]


def test_arrivals_are_seeded_and_poisson() -> None:
    times = poisson_arrivals(5.0, 20_000, seed=3)
    assert times == poisson_arrivals(5.0, 20_000, seed=3)
    assert times != poisson_arrivals(5.0, 20_000, seed=4)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.05)  # as of an exponential distribution


@pytest.mark.parametrize("text", ["0", "-3", "5:4", "0:4", "x", "", "1:2:3"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        Lengths.parse(text)


def test_lengths_are_seeded_and_in_range() -> None:
    assert Lengths.parse("16:32") == Lengths(16, 32)
    assert str(Lengths.parse("16:32")) == "16:32"
    assert str(Lengths.parse("64")) == "64"
    load = workload(prompt_kind="ids", prompt_tokens=Lengths(3, 9), max_tokens=Lengths(1, 5))
    drawn = [(len(body["prompt"]), body["max_tokens"]) for body in bodies(load, 200)]
    assert {length for length, _ in drawn} == set(range(3, 10))
    assert {length for _, length in drawn} == set(range(1, 6))
    assert drawn == [(len(body["prompt"]), body["max_tokens"]) for body in bodies(load, 200)]
    assert drawn != [(len(body["prompt"]), body["max_tokens"]) for body in bodies(load, 200, part="other")]


def test_prompts_share_only_the_shared_prefix() -> None:
    load = workload(prompt_kind="ids", shared_prefix_tokens=32, token_ids=(40, 250))
    prompts = [body["prompt"] for body in bodies(load) + bodies(load)]
    assert {len(prompt) for prompt in prompts} == {96}
    assert {token_id for prompt in prompts for token_id in prompt} <= set(range(40, 251))
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 1
    assert len({tuple(prompt[32:48]) for prompt in prompts}) == len(prompts)


def test_words_follow_the_scale() -> None:
    scale = WordScale.fit((16, 120), (64, 360))
    assert scale == WordScale(per_word=5.0, overhead=40.0)
    load = workload(endpoint="chat", scale=scale, prompt_tokens=Lengths(140, 140), shared_prefix_tokens=50)
    texts = [body["messages"][0]["content"].split() for body in bodies(load)]
    assert {len(text) for text in texts} == {30}
    assert len({tuple(text[:10]) for text in texts}) == 1
    assert len({tuple(text[10:20]) for text in texts}) == len(texts)
    assert scale.words(3) == 1  # less than the template alone


def test_body_fields() -> None:
    body = bodies(workload(ignore_eos=True), 1)[0]
    assert body.pop("prompt")
    assert body == {
        "model": "m",
        "max_tokens": 8,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = bodies(workload(stream=False, temperature=0.5, extra={"top_p": 0.9, "max_tokens": 3}), 1)[0]
    assert (body["stream"], body["top_p"], body["max_tokens"]) == (False, 0.9, 3)
    assert isinstance(body["seed"], int)
    assert "stream_options" not in body


def test_bodies_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    plain = {"messages": [], "n": 2, "stream_options": {"include_usage": False, "x": 1}}
    batch = {"custom_id": "1", "url": "/v1/chat/completions", "body": {"messages": [], "model": "own"}}
    path.write_text(f"{json.dumps(plain)}\n\n{json.dumps(batch)}\n")
    first, second = map(json.loads, read_bodies(path, "chat", "m", force_model=False, stream=True))
    assert (first["model"], second["model"]) == ("m", "own")
    assert first["stream_options"] == {"include_usage": True, "x": 1}
    first, second = map(json.loads, read_bodies(path, "chat", "m", force_model=True, stream=False))
    assert (first["model"], second["model"], first["stream"]) == ("m", "m", False)
    for text in ("", "{", "[]", '{"prompt": "x"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"requests\.jsonl"):
            read_bodies(path, "chat", "m", force_model=False, stream=True)


@pytest.mark.parametrize(
    "text", ["normal", "normal:5", "normal:0:1", "normal:5:-1", "normal:5:nan", "lognormal:9:1:0", "lognormal:1:2:3:4"]
)
def test_distributions_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        Lengths.parse(text)


def test_distributions() -> None:
    generator = random.Random(1)
    normal = Lengths.parse("normal:200:20")
    drawn = [normal.draw(generator) for _ in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(200, abs=2)
    assert statistics.stdev(drawn) == pytest.approx(20, abs=1)
    tailed = Lengths.parse("lognormal:100:1:1000")
    drawn = [tailed.draw(generator) for _ in range(4000)]
    assert statistics.median(drawn) == pytest.approx(100, rel=0.1)
    assert (min(drawn) >= 1, max(drawn)) == (True, 1000)
    assert {Lengths.parse("normal:1:50").draw(generator) for _ in range(99)} >= {1}
    assert Lengths.parse("lognormal:1:1e9").draw(generator) >= 1  # no overflow
    for text in ("normal:200:20", "lognormal:100:1:1000", "lognormal:9.5:0.25"):
        assert str(Lengths.parse(text)) == text
    assert {tailed.capped(3).draw(generator) for _ in range(50)} <= {1, 2, 3}
    assert Lengths(16, 256).capped(16) == Lengths(16, 16)
