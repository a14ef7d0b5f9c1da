"""Tests of `qwen-server eval`."""
