"""Tests of model/scheduling."""
