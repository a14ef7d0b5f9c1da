"""`qwen-server chat`: a conversation in a terminal, with this server or any OpenAI-compatible one.

It is an ordinary client of the API and must not depend on how this server works inside.
"""
