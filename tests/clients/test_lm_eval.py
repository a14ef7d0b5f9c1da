"""lm-eval's log-likelihood tasks over HTTP: its own requests, sent by hand, and the harness itself where installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.wire import Wire

JsonDict = dict[str, Any]
LETTERS = ["A", "B", "C", "D"]
# Questions in the form of MMLU's; a random model knows nothing, but what it finds likeliest is certain.
QUESTIONS = [
    {"question": "What is 1 + 1?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"},
    {"question": "What comes after Monday?", "A": "Sunday", "B": "Friday", "C": "Tuesday", "D": "May", "answer": "C"},
    {"question": "哪个是水果?", "A": "石头", "B": "云", "C": "书", "D": "苹果", "answer": "D"},
]


class Harness:
    """What lm-eval's `local-completions` asks for with its remote tokenizer, request by request."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        response = wire.http.get("/tokenizer_info")
        assert response.status_code == 200
        self.info: JsonDict = response.json()

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self.wire.ok("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        return tokens

    @property
    def prefix_id(self) -> int:
        return self.encode(self.info["eos_token"])[0]

    def loglikelihoods(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of each continuation after its context, and whether greedy decoding would write it."""
        prompts = [context + continuation for context, continuation in pairs]
        body = {"model": "Qwen", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
        choices = self.wire.ok("/v1/completions", {**body, "prompt": prompts})["choices"]
        results = []
        for choice, (context, _) in zip(sorted(choices, key=lambda c: c["index"]), pairs, strict=True):
            scores = choice["logprobs"]["token_logprobs"][len(context) : -1]
            tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
            is_greedy = all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))
            results.append((sum(scores), is_greedy))
        return results


@pytest.fixture(scope="module")
def harness(wire: Wire) -> Harness:
    return Harness(wire)


def context_of(document: JsonDict) -> str:
    choices = "".join(f"{letter}. {document[letter]}\n" for letter in LETTERS)
    return f"{document['question']}\n{choices}Answer:"


def forced_score(wire: Wire, context: str, continuation: str) -> tuple[float, bool]:
    """The same by another way: the model is made to write the continuation, and tells how likely each token was."""
    body = {"prompt": context, "structured_outputs": {"choice": [continuation]}, "logprobs": 1, "max_tokens": 50}
    logprobs = wire.ok("/v1/completions", body)["choices"][0]["logprobs"]
    num_tokens = len(continuation.encode())  # the vocabulary is the 256 bytes
    scores = logprobs["token_logprobs"][:num_tokens]
    tops = logprobs["top_logprobs"][:num_tokens]
    return sum(scores), all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))


def test_what_the_harness_learns_about_the_tokenizer(harness: Harness, wire: Wire) -> None:
    info = harness.info
    assert info["eos_token"] == "<|endoftext|>"
    assert harness.encode("<|endoftext|>") == [harness.prefix_id] == [256]
    assert info["added_tokens_decoder"]["256"]["content"] == "<|endoftext|>"
    assert info["model_max_length"] == wire.ok("/tokenize", {"prompt": "x"})["max_model_len"]
    assert {"tokenizer_class", "bos_token", "pad_token", "chat_template"} <= set(info)
    for token_id, token in info["added_tokens_decoder"].items():
        assert wire.ok("/detokenize", {"tokens": [int(token_id)]})["prompt"] == token["content"]
        assert harness.encode(token["content"]) == [int(token_id)]


@pytest.mark.parametrize("text", ["a<|endoftext|>", "<|endoftext|> ", "<|im_start|>user\nhi<|im_end|>", "<|nothing|>"])
def test_text_that_holds_the_name_of_a_control_token_stays_text(harness: Harness, wire: Wire, text: str) -> None:
    assert harness.encode(text) == list(text.encode())
    assert wire.ok("/tokenize", {"prompt": "<|im_end|>"})["tokens"] == list(b"<|im_end|>")


def test_a_choice_of_letters(harness: Harness, wire: Wire) -> None:
    for document in QUESTIONS:
        context = harness.encode(context_of(document))
        pairs = [(context, harness.encode(f" {letter}")) for letter in LETTERS]
        scores = harness.loglikelihoods(pairs)
        for letter, (score, is_greedy) in zip(LETTERS, scores, strict=True):
            expected, expected_greedy = forced_score(wire, context_of(document), f" {letter}")
            assert score == pytest.approx(expected, abs=1e-2)
            assert is_greedy == expected_greedy
        assert len({round(score, 4) for score, _ in scores}) == len(LETTERS)


def test_what_greedy_decoding_writes_is_found_greedy(harness: Harness, wire: Wire) -> None:
    greedy = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 4, "return_token_ids": True}
    ids = wire.ok("/v1/completions", {**greedy, "prompt": "Answer:"})["choices"][0]["token_ids"]
    context = harness.encode("Answer:")
    other = [*ids[:-1], (ids[-1] + 1) % 256]
    assert [is_greedy for _, is_greedy in harness.loglikelihoods([(context, ids), (context, other)])] == [True, False]


def test_a_whole_text_is_scored_after_the_prefix_token(harness: Harness) -> None:
    """Perplexity: one window, then the same text in two."""
    ids = harness.encode("Once upon a time there was a 猫.")
    prefix = [harness.prefix_id]
    (whole,) = harness.loglikelihoods([(prefix, ids)])
    parts = harness.loglikelihoods([(prefix, ids[:9]), (prefix + ids[:9], ids[9:])])
    assert whole[0] == pytest.approx(sum(score for score, _ in parts), abs=1e-2)
    assert whole[0] < 0


def test_the_harness_itself(wire: Wire, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\nAnswer:",
        "doc_to_choice": LETTERS,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(task))
    harness = Harness(wire)
    right = 0
    for document in QUESTIONS:
        context = harness.encode(context_of(document))
        scores = harness.loglikelihoods([(context, harness.encode(f" {letter}")) for letter in LETTERS])
        right += LETTERS[max(range(4), key=lambda i: scores[i][0])] == document["answer"]
    address = f"{wire.http.base_url.join('/v1/completions')}"
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "tiny",
        "--include_path", str(tmp_path), "--batch_size", "4", "--output_path", str(tmp_path / "out"),
        "--model_args", f"model=Qwen,base_url={address}",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    (report,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(report.read_text())["results"]["tiny"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
