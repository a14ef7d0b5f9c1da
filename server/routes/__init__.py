"""One module a group of routes; each only joins conversion, generation and reply."""
