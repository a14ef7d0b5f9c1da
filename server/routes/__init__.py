"""Routes, one module a group; each only joins conversion, generation and reply."""
