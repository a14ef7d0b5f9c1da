"""From documents to weights."""
