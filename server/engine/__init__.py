"""The engine process as the HTTP process sees it."""
