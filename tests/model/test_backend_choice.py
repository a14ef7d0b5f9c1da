"""What happens where CUDA is there and Triton is not."""

from __future__ import annotations

import sys

import pytest
import torch

from model.backends import make_backend
from model.errors import ConfigError


def test_cuda_without_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    prefixes = ("triton", "model.backends.cuda")
    for name in [name for name in sys.modules if name.startswith(prefixes)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match=r"needs Triton; install it with `pip install 'qwen-server\[cuda\]'`"):
        make_backend("cuda:0")
