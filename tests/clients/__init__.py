"""The clients people use, against the real server."""
