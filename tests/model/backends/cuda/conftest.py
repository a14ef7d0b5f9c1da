"""Kernels run natively where there is a GPU, and in Triton's interpreter on a CPU where there is none."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (the extra `cuda`)")

import triton.language as tl
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_numpy(tensor: Any, scope: Any) -> None:
    """Triton 3.6 takes int() of arrays of one element, which numpy 2.4 no longer allows."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_tensor_for_numpy

_patch_language = interpreter._patch_lang


def _patch_language_once(function: Any) -> Any:
    """A kernel patches Triton's language for itself and the helpers it calls.

    The interpreter looks through all names of the language again for each call of a helper: half of its time.
    """
    seen = [lang for lang in (tl, tl.core) if any(value is lang for value in function.__globals__.values())]
    are_patched = not any(tl.core.is_builtin(lang.load) for lang in seen)
    return interpreter._LangPatchScope() if are_patched else _patch_language(function)


interpreter._patch_lang = _patch_language_once

_dot = interpreter.InterpreterBuilder.create_dot


def _dot_of_bfloat16(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """The interpreter keeps bfloat16 as 16 bits of an integer, and multiplies those."""
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, *rest)


interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16


@pytest.fixture
def device() -> torch.device:
    """Where kernels run in this session."""
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every run."""
    torch.manual_seed(0)
