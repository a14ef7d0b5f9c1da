"""Requests and replies on the wire: their shapes, examples, the OpenAPI document, how bodies are read, and errors."""
