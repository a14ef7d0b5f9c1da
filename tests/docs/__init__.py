"""The guides: what they say to type is typed."""
