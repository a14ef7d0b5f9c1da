"""`qwen-server chat`: a conversation in a terminal, with this server or any OpenAI-compatible one.

A client of the API like any other: it may not know how this server works inside.
"""
