"""CPU time of the HTTP process for a streamed token."""
