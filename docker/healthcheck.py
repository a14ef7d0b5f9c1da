"""The containers' health check: asks the server itself, wherever its environment told it to listen.

/health says 200 while the process can be left running, also while it loads; whether a request would be served now is
what /ready tells, which is for load balancers.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 5.0


def main() -> int:
    """Returns 0 if the server is healthy, else 1 after saying why."""
    port = os.environ.get("QWEN_SERVER_PORT", "8000")
    if "://" in port:  # Kubernetes' word for a service called qwen-server, which the server does not take either
        port = "8000"
    has_tls = bool(os.environ.get("QWEN_SERVER_SSL_CERTFILE"))
    # The certificate is for the server's public name; here it is asked on the loopback address.
    context = ssl._create_unverified_context() if has_tls else None
    url = f"{'https' if has_tls else 'http'}://127.0.0.1:{port}/health"
    # Not through the environment's proxy: urllib does not understand every no_proxy that names the loopback.
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=_TIMEOUT_S) as response:
            return 0 if response.status == 200 else 1
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
