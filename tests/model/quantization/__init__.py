"""Tests of model/quantization."""
