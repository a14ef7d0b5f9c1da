"""Replicas of the server on Ray Serve, which places, routes, scales and replaces them.

Needs the extra `ray`; nothing else imports from here.
"""
