"""Responses and conversations that outlive a request, and responses that are made in the background."""
