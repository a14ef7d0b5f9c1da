"""The containers' health check: requests /health from the server, at the address set in the environment.

/health is 200 while the process need not be restarted, also while it loads. Whether requests would be served now is
what /ready reports, for load balancers.
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
    if "://" in port:  # set by Kubernetes for a service called qwen-server; the server ignores it too
        port = "8000"
    has_tls = bool(os.environ.get("QWEN_SERVER_SSL_CERTFILE"))
    # The certificate is for the server's public name, but the request goes to the loopback address.
    context = ssl._create_unverified_context() if has_tls else None
    url = f"{'https' if has_tls else 'http'}://127.0.0.1:{port}/health"
    # Bypass the environment's proxy: urllib does not understand every no_proxy that names the loopback address.
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=_TIMEOUT_S) as response:
            return 0 if response.status == 200 else 1
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
