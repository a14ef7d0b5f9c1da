"""What outlives a request: files, batches, responses and conversations, in memory or in one SQLite file."""
