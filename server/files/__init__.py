"""Files that clients send and batches make."""
