"""The published test data and the real vocabulary, which tests of prompts use too."""

from __future__ import annotations

from tests.prompts.conftest import chatml_cases, react_cases, tokenizer

__all__ = ["chatml_cases", "react_cases", "tokenizer"]
