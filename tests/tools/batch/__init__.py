"""Tests of `qwen-server batch`."""
