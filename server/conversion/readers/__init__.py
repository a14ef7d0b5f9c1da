"""From each API's requests to the neutral ones; the only part of conversion that knows the wire."""
