"""Tests of server/grammars."""
