"""All of these need a CUDA device, and Triton that compiles."""

from __future__ import annotations

import os

import pytest
import torch

from tests.model.conftest import tiny_checkpoint  # noqa: F401  a fixture of both folders

pytest.importorskip("triton", reason="Triton is not installed (the extra `cuda`)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything in this folder, and skips it without a device."""
    for item in items:
        if "tests/gpu/" not in item.nodeid:
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        elif os.environ.get("TRITON_INTERPRET") == "1":
            item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET is set: kernels would run on the CPU"))
