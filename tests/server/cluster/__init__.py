"""Tests of the app as many replicas."""
