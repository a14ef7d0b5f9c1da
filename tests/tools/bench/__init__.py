"""Tests of the benchmarks: their arithmetic, and the client under a server that misbehaves."""
