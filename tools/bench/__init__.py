"""`qwen-server bench`: a load generator with little overhead of its own, and its figures.

It is an ordinary client of the API and must not depend on how this server works inside.
"""
