"""What the server reports: lines of the log, metrics for Prometheus, OpenTelemetry spans."""
