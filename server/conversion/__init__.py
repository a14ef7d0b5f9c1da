"""From the wire to token ids, sampling and a grammar."""
