"""Tests of model/execution."""
