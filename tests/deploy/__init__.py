"""Against programs that servers are deployed with; skipped where they are not installed."""
