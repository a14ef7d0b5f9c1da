"""Tests of model/backends/cpu."""
