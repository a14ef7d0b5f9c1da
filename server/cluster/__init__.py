"""Many replicas on Ray Serve, which places, routes, scales and replaces them; here is what makes our app one of them.

Needs the extra `ray`; nothing else imports from here.
"""
