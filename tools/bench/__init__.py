"""`qwen-server bench`: a load generator that costs its machine little, and the figures it makes.

A client of the API like any other: it may not know how this server works inside.
"""
