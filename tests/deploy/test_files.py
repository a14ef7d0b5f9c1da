"""docker/ read by the programs that will read it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.support.paths import ROOT

PROMETHEUS = ROOT / "docker" / "prometheus"


def promtool(*words: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration_and_the_alerts() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(ROOT / "tests" / "deploy" / "alerts_test.yml"))


@pytest.mark.parametrize(("profile", "server"), [("gpu", "server"), ("cpu", "server-cpu")])
def test_compose_takes_its_file(profile: str, server: str) -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    plugin = ["docker", "compose"]
    if (
        shutil.which("docker")
        and subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0
    ):
        command = plugin
    elif shutil.which("docker-compose"):
        command = ["docker-compose"]
        text = text.replace("name: qwen-server\n", "")  # which its version 1 does not know
    else:
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        [
            *command,
            "-f",
            "-",
            "--project-directory",
            str(ROOT / "docker"),
            "--profile",
            profile,
            "config",
            "--services",
        ],
        input=text,
        env={**os.environ, "MODEL_FOLDER": "/model", "QWEN_SERVER_API_KEY": "k"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= {server, "prometheus", "grafana"}
