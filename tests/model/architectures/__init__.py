"""Tests of model/architectures."""
