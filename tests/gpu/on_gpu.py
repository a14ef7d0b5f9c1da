"""Engines on the GPU, driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from tests.support.engine_driver import Driver, make_driver


def drive(folder: Path, **changes: Any) -> Driver:
    return make_driver(folder, **{"device": "cuda", "max_model_len": 320, "max_num_seqs": 16, **changes})


def greedy_prompts(num_requests: int, length: int) -> list[AddRequest]:
    sampling = SamplingParams(max_tokens=8, temperature=0.0, repetition_penalty=1.1)
    return [
        AddRequest(seq_ids=(i,), request_id=str(i), prompt_ids=[1 + i % 200] * length, sampling=sampling)
        for i in range(num_requests)
    ]
