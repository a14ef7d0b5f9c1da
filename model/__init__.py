"""The engine: from token ids to token ids. Knows nothing of HTTP or chat."""
