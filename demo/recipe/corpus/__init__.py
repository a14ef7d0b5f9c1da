"""The training corpus: an endless, seeded stream of documents."""
