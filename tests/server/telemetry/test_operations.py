"""For operators: effective settings, HTTPS, keys from each source, prompts kept out of logs, traces."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from model.contract.errors import ConfigError
from server.__main__ import main
from server.config.sources import load_settings
from server.telemetry import tracing
from server.tls import tls_from_files
from tests.conftest import SMALL
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess, running_server
from tools.check_config import check_config

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SECRET_PROMPT = "a prompt like no other 8412"


def write_certificate(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime(2020, 1, 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    certfile, keyfile = folder / f"{name}.crt", folder / f"{name}.key"
    certfile.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.PrivateFormat.PKCS8
    keyfile.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, lock))
    return certfile, keyfile


class Collector:
    """Takes OTLP traces over HTTP and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def guarded(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[ServerProcess]:
    """HTTPS with an encrypted key; callers' keys from the command line, a file and the environment; traces; prompts."""
    folder = tmp_path_factory.mktemp("guarded")
    certfile, keyfile = write_certificate(folder, "ours", b"pass-word-77")
    (folder / "keys").write_text("# a comment\nkey-of-file\n")
    config = folder / "settings.toml"
    config.write_text(f'ssl_certfile = "{certfile}"\nssl-keyfile = "{keyfile}"\nlog_prompts = true\n')
    env = {
        **os.environ,
        "QWEN_SERVER_API_AUTH": "ada:love:lace",
        "QWEN_SERVER_SSL_KEYFILE_PASSWORD": "pass-word-77",
        "QWEN_SERVER_OTEL_ENDPOINT": collector.url,
    }
    flags = ["--config", str(config), "--api-key", "key-of-flag", "--api-key-file", str(folder / "keys"), *SMALL]
    with running_server(demo_checkpoint, folder / "log", *flags, env=env) as process:
        yield process


def post(server: ServerProcess, authorization: str | None, **more: Any) -> httpx.Response:
    headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    if authorization is not None:
        headers["Authorization"] = authorization
    body = {"messages": [{"role": "user", "content": SECRET_PROMPT}], "max_tokens": 4, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, verify=False, timeout=60)


def test_every_source_of_keys_lets_in_over_https(guarded: ServerProcess) -> None:
    assert guarded.url.startswith("https://")
    for authorization in ("Bearer key-of-flag", "Bearer key-of-file", httpx.BasicAuth("ada", "love:lace")._auth_header):
        assert post(guarded, authorization).status_code == 200
    for wrong in (None, "Bearer key-of", "Bearer # a comment", "Bearer ada:love:lace", "Basic a2V5LW9mLWZsYWc="):
        assert post(guarded, wrong).status_code == 401


def test_no_route_answers_without_a_key_but_the_open_ones(guarded: ServerProcess) -> None:
    with httpx.Client(base_url=guarded.url, verify=False) as http:
        paths = http.get("/openapi.json").json()["paths"]
        routes = [(method, path.replace("{model_id}", "x")) for path, verbs in paths.items() for method in verbs]
        routes += [
            ("get", "/v1"),
            ("get", "/v1/"),
            ("post", "/v1/nothing"),
            ("delete", "/v1/models"),
            ("get", "/v1//x"),
        ]
        closed = {path for method, path in routes if http.request(method, path).status_code == 401}
    assert {path for _, path in routes if path.startswith("/v1")} <= closed
    assert {"/tokenize", "/detokenize"} <= closed
    assert not closed & {"/health", "/ready", "/metrics", "/version"}


def test_secrets_are_never_logged_and_prompts_only_when_asked_for(
    guarded: ServerProcess, server: ServerProcess
) -> None:
    post(guarded, "Bearer key-of-flag")
    post(guarded, "Bearer wrong-key-9")
    log = guarded.log()
    assert not [s for s in ("key-of-flag", "key-of-file", "love:lace", "pass-word-77", "wrong-key-9") if s in log]
    assert f"<|im_start|>user\\n{SECRET_PROMPT}<|im_end|>" in log.replace("\n", "\\n")
    httpx.post(f"{server.url}/v1/completions", json={"prompt": SECRET_PROMPT, "max_tokens": 1}, timeout=60)
    assert SECRET_PROMPT not in server.log()


def test_traces(guarded: ServerProcess, collector: Collector) -> None:
    post(guarded, "Bearer key-of-flag", stream=True, max_tokens=3, ignore_eos=True)
    post(guarded, None)
    post(guarded, "Bearer key-of-flag", user="x" * (5 << 20))
    guarded.status("/health")
    guarded.terminate()  # sends what was not sent yet
    assert collector.spans
    assert not [span for span in collector.spans if "health" in span.name or "ready" in span.name]
    ours = [span for span in collector.spans if span.trace_id.hex() == TRACE_ID]
    chats = [span for span in ours if span.name == "POST /v1/chat/completions"]
    facts = [{a.key: a.value for a in span.attributes} for span in chats]
    statuses = {f["http.response.status_code"].int_value for f in facts}
    assert {200, 401, 413} <= statuses, "also those that never reach the route"
    assert all(f["http.route"].string_value == "/v1/chat/completions" for f in facts)
    served = [f for f in facts if "gen_ai.usage.output_tokens" in f]
    streamed = next(f for f in served if f["gen_ai.usage.output_tokens"].int_value == 3)
    assert streamed["http.response.status_code"].int_value == 200
    assert streamed["qwen.ttft_s"].double_value > 0
    assert streamed["qwen.request_id"].string_value.startswith("req-")
    assert SECRET_PROMPT not in str(collector.spans)


@pytest.mark.parametrize("listens", [True, False])
def test_a_dead_collector_does_not_hold_up_the_end(
    listens: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With no listener, or one that never answers: by itself the exporter tries for ten seconds."""
    monkeypatch.setattr(tracing, "_LAST_SPANS_S", 0.05)
    at_exit: list[object] = []
    monkeypatch.setattr("atexit.register", lambda end, *_: at_exit.append(end))
    with socket.create_server(("127.0.0.1", 0)) as collector:
        host, port = collector.getsockname()
        if not listens:
            collector.close()
        tracer = tracing.Tracer(f"http://{host}:{port}")
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        tracer.end(tracer.start(scope), scope, 200, {})
        tracer.close()
        assert "did not take the last spans within 0.05 s" in caplog.text
    assert not at_exit
    for thread in threading.enumerate():  # what the collector's end ends
        if thread.name == "last spans" or thread.name.startswith("OtelBatch"):
            thread.join(20)


def test_check_config_tells_values_and_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model: models/mine\nmax-num-seqs: 8\nport: 1\napi_key: [one-secret, two-secret]\n")
    assert main(["check-config", "--config", str(file), "--port", "7000", "--served-model-name", "a"]) == 0
    output = capsys.readouterr().out
    lines = {line.split()[0]: line for line in output.splitlines() if line}
    assert lines["port"].split()[1:] == ["7000", "--port"]
    assert "settings.yaml: max-num-seqs" in lines["max_num_seqs"]
    assert lines["block_size"].split()[1:] == ["16", "default"]
    assert "(2 hidden)" in lines["api_key"]
    assert "2 keys" in lines["callers"]
    assert "secret" not in output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["m"], "m: no such folder"),
        (["m", "--config", "FILE"], "unknown setting 'prot'; did you mean port?"),
        (["m", "--max-num-seqs", "no"], "--max-num-seqs"),
        (["m", "--api-key-file", "/no/such"], "cannot read the key file"),
        (["m", "--ssl-keyfile", "/no/such"], "need --ssl-certfile"),
        (["m", "--ssl-certfile", "/no/such"], "no such certificate"),
        (["m", "--otel-endpoint", "collector:4318"], "--otel-endpoint"),
    ],
)
def test_check_config_finds_mistakes(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("prot = 1\n")
    assert main(["check-config", *(str(file) if flag == "FILE" else flag for flag in flags)]) == 1
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    ours, our_key = write_certificate(tmp_path, "ours", b"right")
    _, other_key = write_certificate(tmp_path, "other")
    text = tmp_path / "text.crt"
    text.write_text("no certificate")
    for certfile, keyfile, password in (
        (ours, our_key, None),
        (ours, our_key, "wrong"),
        (ours, other_key, None),
        (ours, None, None),
        (text, other_key, None),
    ):
        with pytest.raises(ConfigError, match="cannot be used") as caught:
            tls_from_files(certfile, keyfile, password)
        assert "wrong" not in str(caught.value).replace("the wrong password", "")
    both = tmp_path / "both.pem"
    both.write_bytes(ours.read_bytes() + our_key.read_bytes())
    tls = tls_from_files(both, None, "right")
    assert tls is not None
    assert "right" not in repr(tls)


def test_secrets_do_not_stay_in_settings() -> None:
    settings = load_settings({"model": "m", "api_key": ["s3cret"], "api_auth": "u:s3cret"}, {})
    kept = settings.without_secrets()
    assert "s3cret" not in repr(kept)
    assert kept.model == "m"
    assert not kept.credentials().required
    assert settings.credentials().caller("Bearer s3cret")


def test_traces_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"qwen-server\[otel\]"):
        check_config({"model": "m", "otel_endpoint": "http://x"}, {}, None)


def test_without_traces_their_libraries_are_not_imported() -> None:
    code = "import sys, server.app, server.serve; print('opentelemetry.sdk' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
