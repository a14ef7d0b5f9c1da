"""Objects that outlive a request: files, batches, responses, conversations; in memory or in one SQLite file."""
