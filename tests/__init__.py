"""The tests; packages, so that `tests/server` is never mistaken for `server`."""
