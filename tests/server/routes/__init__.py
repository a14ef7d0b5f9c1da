"""Tests of server/routes."""
