"""What the checkpoint is trained on: an endless, seeded stream of documents."""
