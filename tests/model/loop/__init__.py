"""Tests of model/loop."""
