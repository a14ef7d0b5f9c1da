"""The training side: the module computes what is served, the vocabulary copies, a short training learns."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from demo.recipe.corpus.document import HEARD, Document, encode_document, encode_prompt
from demo.recipe.corpus.stream import make_document
from demo.recipe.evaluation.evaluate import evaluate_checkpoint, make_cases, read_reply, score, table
from demo.recipe.evaluation.generate import generate
from demo.recipe.training import export, train, trainer, vocabulary
from demo.recipe.training.batches import HEARD_DOCUMENTS, HEARD_LATER, encode_pool, pool_steps
from demo.recipe.training.copy_init import write_copy_heads
from demo.recipe.training.export import export_checkpoint, load_checkpoint
from demo.recipe.training.grid import on_grid, round_to_grid
from demo.recipe.training.model import ModelConfig, QwenForTraining
from demo.recipe.training.optimizer import orthogonalize
from model.contract.tokenizer import Tokenizer
from server.run_module import module_command
from tests.support.engine_driver import LoadedModel
from tests.support.paths import GOLDEN


@pytest.fixture(scope="module")
def ranks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned here: small, and quickly."""
    path = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    vocabulary.write_ranks(vocabulary.train_vocabulary(num_documents=100), path)
    return path


@pytest.mark.parametrize("folder", ["plain_theta1e6_fp32", "ntk_logn_fp32"])
def test_module_equals_the_published_code(folder: str):
    model = load_checkpoint(GOLDEN / folder).eval()
    expected = load_file(GOLDEN / folder / "expected.safetensors")
    for case in json.loads((GOLDEN / folder / "cases.json").read_text())["cases"]:
        with torch.no_grad():
            logits = model(torch.tensor([case["prompt"]]))[0, case["logit_positions"]]
        torch.testing.assert_close(logits, expected[f"{case['name']}.logits"], atol=1e-4, rtol=1e-4)


def test_export_is_served_as_it_was_trained(tmp_path: Path, ranks_file: Path, tokenizer: Tokenizer):
    config = ModelConfig(
        vocab_size=4352, hidden_size=128, num_hidden_layers=3, kv_channels=32, intermediate_size=512, seq_length=64
    )
    torch.manual_seed(0)
    model = QwenForTraining(config)
    write_copy_heads(model)
    export_checkpoint(model, ranks_file, tmp_path)
    again = load_checkpoint(tmp_path).eval()
    served = LoadedModel(tmp_path)
    for length in (1, 40, 150):  # below and above the trained length, where NTK and LogN act
        ids = torch.randint(0, tokenizer.num_tokens, (length,)).tolist()
        with torch.no_grad():
            torch.testing.assert_close(again(torch.tensor([ids]))[0], served.logits(ids), atol=2e-4, rtol=1e-3)


def test_cached_decoding_equals_the_whole_pass(ranks_file: Path, tokenizer: Tokenizer):
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=4352, hidden_size=64, num_hidden_layers=2, kv_channels=16, intermediate_size=128)
    model = QwenForTraining(config).eval()
    prompts = [torch.randint(0, 4000, (n,)).tolist() for n in (3, 17, 9)]
    texts = generate(model, tokenizer, prompts, max_new_tokens=6)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                token = int(model(torch.tensor([ids]))[0, -1].argmax())
            if tokenizer.is_special(token):
                break
            ids.append(token)
        assert tokenizer.decode(ids[len(prompt) :]) == text


def test_new_models_can_already_copy():
    torch.manual_seed(0)
    model = QwenForTraining(ModelConfig(vocab_size=4352))
    first = torch.randint(0, 4000, (4, 60))
    ids = torch.cat([first, first], 1)

    def share_copied() -> float:
        with torch.no_grad():
            logits = model(ids)
        return (logits[:, 60:-1].argmax(-1) == ids[:, 61:]).float().mean().item()

    assert share_copied() < 0.02
    write_copy_heads(model)
    assert share_copied() > 0.1


def test_loss_counts_weighted_positions_only():
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, kv_channels=16, intermediate_size=64)
    model = QwenForTraining(config)
    ids = torch.randint(0, 50, (2, 9))
    weights = torch.zeros(2, 9)
    weights[0, 4], weights[1, 8] = 1.0, 0.5
    logits = model(ids).log_softmax(-1)
    expected = -(logits[0, 3, ids[0, 4]] + 0.5 * logits[1, 7, ids[1, 8]])
    torch.testing.assert_close(model.loss(ids, weights), expected)


def test_steps_hold_every_document_once_and_mix_lengths(ranks_file: Path):
    documents = encode_pool(3, 0, 120, str(ranks_file), 1024)
    steps = pool_steps(documents, 4000)
    assert sum(len(b.ids) for step in steps for b in step) == 120
    assert sum(float(b.weights.sum()) for step in steps for b in step) == pytest.approx(
        sum(weights.sum() for _, weights, _ in documents)
    )
    assert sum(len(b.hints) for step in steps for b in step) == sum(len(hints) for _, _, hints in documents)
    for step in steps:
        assert sum(b.ids.numel() for b in step) < 3 * 4000
        for batch in step:
            assert batch.weights.shape[1] <= 1024


def test_orthogonalize():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 96, 32)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_vocabulary_round_trip_and_layout(ranks_file: Path, tokenizer: Tokenizer):
    assert tokenizer.num_ranks == vocabulary.NUM_RANKS
    texts = [
        "",
        " ",
        "\n\n",
        "naïve café",
        "龘靐齉 🙂👍",
        '{"a": [1, 2.5], "b": "C:\\\\x"}\n',
        "\t tabs  and   spaces ",
    ]
    texts += [t.text for n in range(200) for t in make_document(11, n).turns]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert all(len(tokenizer.encode(d)) == 1 for d in "0123456789")


def test_words_are_cut_alike_wherever_they_stand(tokenizer: Tokenizer):
    for word in ("Parvelin", "Zorbex", "qwist", "Tromsund"):
        alone = [tokenizer.token_bytes(i) for i in tokenizer.encode(word)]
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode(f" {word}")] == [b" ", *alone]
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode(f'"{word}')] == [b'"', *alone]


def test_weights_cover_replies_and_faintly_questions(tokenizer: Tokenizer):
    document = Document("x").system("be nice").user("ask").assistant(("said ", 0.0), "answer", (" tail", 0.0))
    ids, weights = encode_document(document, tokenizer)
    assert tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == 1]) == " answer"
    assert tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if 0 < w < 1]) == "ask"
    assert encode_prompt(document, tokenizer) == ids[: len(encode_prompt(document, tokenizer))]
    plain = Document("x").user("ask").assistant("answer")
    ids, weights = encode_document(plain, tokenizer)
    assert weights[-1] == 1.0
    assert ids[-1] == tokenizer.im_end_id


def test_what_is_heard_counts_less_later_and_is_thinned_out(ranks_file: Path, tokenizer: Tokenizer):
    for first, share, stride in ((HEARD_DOCUMENTS - 8, 1.0, 3), (HEARD_DOCUMENTS, HEARD_LATER, 6)):
        kept = total = 0
        for number, (_, weights, _) in enumerate(encode_pool(3, first, 8, str(ranks_file), 4096), start=first):
            _, said = encode_document(make_document(3, number), tokenizer)
            said = np.array(said, np.float32)
            heard = (said > 0) & (said <= np.float32(HEARD))
            scale = weights[said == 1.0].max()  # documents with fewer learned tokens weigh more a token
            assert weights[said == 1.0] == pytest.approx(scale)
            assert weights[heard].sum() / scale == pytest.approx(said[heard].sum() * share, abs=stride * HEARD)
            kept, total = kept + (weights[heard] > 0).sum(), total + heard.sum()
        assert total / kept == pytest.approx(stride, rel=0.1)


def test_replies_are_read_and_scored():
    call = 'Thought: x\nAction: f\nAction Input: {"a": 1}\nObservation:'
    assert read_reply(call) == ("f", {"a": 1}, "")
    assert read_reply("Thought: y\nFinal Answer: z") == (None, None, "z")
    assert read_reply("Action: f\nAction Input: {oops") == ("f", "{oops", "")
    cases = make_cases(2)
    assert [c.expected for c in cases] == [c.expected for c in make_cases(2)]
    right = score(cases, [c.expected for c in cases])
    assert all(row["right"] == 1.0 for row in right.values())
    assert right["tools: no call"]["false_positives"] == 0.0
    assert "tools: call" in table(right)


def _exported(state: Path, folder: Path, *options: str) -> torch.Tensor:
    export.main([str(state), str(folder), *options])
    return _weight(folder)


def _weight(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["transformer.h.0.attn.c_attn.weight"].float()


def test_short_training_learns_resumes_and_exports(
    tmp_path: Path, ranks_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY_STEPS", 4)
    state = tmp_path / "state"
    state.mkdir()
    (state / "qwen.tiktoken").write_bytes(ranks_file.read_bytes())
    command = ["--out", str(tmp_path / "out"), "--state", str(state), "--device", "cpu", "--no-evaluation"]
    command += ["--hidden-size", "128", "--layers", "2", "--head-dim", "32", "--intermediate-size", "256"]
    command += ["--step-tokens", "1024", "--warmup-steps", "5", "--pool-documents", "32", "--muon-lr", "0.02"]
    train.main([*command, "--tokens", "18000", "--cooldown", "0", "--threads", "1"])
    train.main([*command, "--tokens", "12000", "--cooldown", "0.5", "--threads", "1", "--grid-steps", "4"])
    losses = [json.loads(line) for line in (state / "losses.jsonl").read_text().splitlines()]
    assert losses[-1]["loss"] < losses[0]["loss"] - 1.0
    assert losses[-1]["tokens"] > 18_000
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "model.safetensors",
        "qwen.tiktoken",
        "loss.png",
    }
    assert (state / "cooled.pt").exists()
    plain, average, grid = (
        _exported(state, tmp_path / "again", *o) for o in ([], ["--average"], ["--grid-steps", "4"])
    )
    assert len(grid.unique()) < len(plain.unique()) / 4
    assert len(_weight(tmp_path / "out").unique()) < len(plain.unique()) / 4, "exported as it was trained"
    assert not torch.equal(plain, average)
    assert (plain - average).norm() < 0.5 * plain.norm()
    report = evaluate_checkpoint(tmp_path / "out", per_category=1)
    assert report["tools: call"]["cases"] > 0


def test_weights_on_a_grid_are_the_nearest_ones():
    drawn = torch.randn(50, 400, generator=torch.Generator().manual_seed(0)) * 0.3
    for steps in (1, 4, 6, 12):
        rounded = round_to_grid(drawn, steps).float()
        step = 2.0 ** math.floor(math.log2(0.3 / steps))
        assert torch.equal((rounded / step).round() * step, rounded)
        assert (rounded - drawn).abs().max() <= step / 2
        assert 2 * steps <= len(rounded.unique()) <= 2 * 5 * 2 * steps + 1
    vector = torch.tensor([0.1, 0.5, 3.0])
    assert torch.equal(round_to_grid(vector, 1), vector)
    assert torch.equal(round_to_grid(torch.zeros(2, 2), 4), torch.zeros(2, 2))


def test_training_on_a_grid_feels_it_and_keeps_the_rest():
    layer = torch.nn.Linear(8, 8)
    before = [p.detach().clone() for p in layer.parameters()]
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ZeroDivisionError), on_grid(layer.parameters(), 2):
        assert torch.equal(layer.weight, round_to_grid(before[0], 2)) and not torch.equal(layer.weight, before[0])
        assert torch.equal(layer.bias, before[1])
        layer(x).sum().backward()
        raise ZeroDivisionError
    assert all(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))
    assert torch.allclose(layer.weight.grad, x.sum(0).expand(8, 8))
    with on_grid(layer.parameters(), None):
        assert torch.equal(layer.weight, before[0])


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, ranks_file: Path) -> None:
    losses = []
    for processes in (1, 2):
        state = tmp_path / str(processes)
        state.mkdir()
        (state / "qwen.tiktoken").write_bytes(ranks_file.read_bytes())
        subprocess.run(
            [
                *module_command("demo.recipe.training.train", "--out", str(tmp_path / "out"), "--state", str(state)),
                *("--tokens", "30000", "--step-tokens", "1024", "--cooldown", "0", "--threads", "1", "--float32"),
                *("--hidden-size", "64", "--layers", "2", "--intermediate-size", "128", "--no-evaluation"),
                *("--processes", str(processes)),
            ],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        losses.append([json.loads(line)["loss"] for line in (state / "losses.jsonl").read_text().splitlines()])
    assert losses[0]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
