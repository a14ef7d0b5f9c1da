"""From requests on the wire to token ids, sampling and a grammar."""
