"""The golden folders: prompts, and what the published model code made of them in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from tests.support.engine_driver import Driver, Reply, make_driver
from tests.support.paths import GOLDEN

FOLDERS = [
    "ntk_logn_fp32",
    "plain_theta1e6_fp32",
    "first_release_names_bf16",
    "gptq_int4",
    "gptq_int8",
    "gptq_int4_asym_desc_act",
]
MAX_MODEL_LEN = 320  # the longest case is 257 + 48
LOGPROBS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One prompt of a golden folder and what the published code made of it in float32."""

    name: str
    prompt: list[int]
    logit_positions: list[int]
    greedy: list[int]
    greedy_logprobs: list[float]
    logits: torch.Tensor
    final_logits: torch.Tensor


def read_cases(folder: str) -> list[Case]:
    expected = load_file(GOLDEN / folder / "expected.safetensors")
    raw = json.loads((GOLDEN / folder / "cases.json").read_text())["cases"]
    names = ("name", "prompt", "logit_positions", "greedy", "greedy_logprobs")
    return [
        Case(
            *(case[name] for name in names),
            logits=expected[f"{case['name']}.logits"],
            final_logits=expected[f"{case['name']}.final_logits"],
        )
        for case in raw
    ]


def greedy_requests(cases: list[Case], first_seq_id: int = 0, **changes: Any) -> list[AddRequest]:
    return [
        AddRequest(
            seq_ids=(first_seq_id + i,),
            request_id=case.name,
            prompt_ids=case.prompt,
            sampling=SamplingParams(max_tokens=len(case.greedy), temperature=0.0, num_logprobs=0, **changes),
        )
        for i, case in enumerate(cases)
    ]


def assert_golden(cases: list[Case], replies: dict[int, Reply]) -> None:
    for case, (_, reply) in zip(cases, sorted(replies.items()), strict=True):
        assert reply.token_ids == case.greedy, case.name
        assert reply.finish_reason == "length"
        logprobs = [entry.logprob for entry in reply.logprobs]
        torch.testing.assert_close(
            torch.tensor(logprobs), torch.tensor(case.greedy_logprobs), rtol=0, atol=LOGPROBS_TOLERANCE
        )


def driver_for(folder: str, **changes: Any) -> Driver:
    return make_driver(GOLDEN / folder, **{"max_model_len": MAX_MODEL_LEN, **changes})
