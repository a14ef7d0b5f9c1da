"""What the server tells of itself: lines of the log, numbers for Prometheus, spans."""
