"""Tests of `qwen-server doctor`."""
