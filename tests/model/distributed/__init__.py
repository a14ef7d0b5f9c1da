"""Several ranks that share one model."""
