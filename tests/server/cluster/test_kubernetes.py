"""The manifests of docker/kubernetes: their settings are the server's, and Kubernetes' schemas accept them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from server.__main__ import build_parser
from server.cluster.options import read_arguments
from server.settings import Settings
from server.telemetry.metrics import Metrics
from tests.support.paths import ROOT

FOLDER = ROOT / "docker/kubernetes"
DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    (f"{path.name}:{document['kind']}", document)
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
BY_NAME = dict(DOCUMENTS)
OTHERS = ("kustomize.config.k8s.io", "ray.io", "inference.networking.k8s.io", "gateway.networking.k8s.io")


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[name for name, _ in DOCUMENTS])
def test_kubernetes_takes_it(name: str, document: dict[str, Any]) -> None:
    assert {"apiVersion", "kind"} <= document.keys()
    if document["apiVersion"].startswith(OTHERS):
        return
    validate = pytest.importorskip("kubernetes_validate", reason="last run with kubernetes-validate 1.37.0")
    validate.validate(document, "1.30", strict=True)


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = BY_NAME["server.yaml:Deployment"]["spec"]["template"]["spec"]
    return spec


def test_the_server_takes_its_arguments_and_has_time_to_drain() -> None:
    (container,) = pod()["containers"]
    arguments = vars(build_parser().parse_args(container["args"]))
    assert arguments["model"] == "Qwen/Qwen-7B-Chat" and arguments["host"] == "0.0.0.0"
    settings = Settings()
    longest = settings.drain_delay_s + settings.shutdown_timeout_s
    assert pod()["terminationGracePeriodSeconds"] > longest + 5
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert container["readinessProbe"]["periodSeconds"] < settings.drain_delay_s, "a leaving pod is seen to leave"


def test_what_is_mounted_is_there() -> None:
    names = {volume["name"] for volume in pod()["volumes"]}
    assert {mount["name"] for mount in pod()["containers"][0]["volumeMounts"]} == names
    claimed = [volume.get("persistentVolumeClaim", {}) for volume in pod()["volumes"]]
    claims = [claim["claimName"] for claim in claimed if claim]
    assert claims == [BY_NAME["server.yaml:PersistentVolumeClaim"]["metadata"]["name"]]


def test_it_scales_by_metrics_that_there_are() -> None:
    text = (FOLDER / "autoscaling.yaml").read_text()
    (series,) = re.findall(r'__name__=~"([^"]+)"', text)
    (old, new) = re.findall(r'matches: "([^"]+)", as: "([^"]+)"', text)[0]
    shown = set(re.findall(r"^# TYPE (\S+)", Metrics("m").render().decode(), re.M))
    exported = {re.sub(old, new.replace("$1", r"\1"), name) for name in shown if re.fullmatch(series, name)}
    metrics = BY_NAME["autoscaling.yaml:HorizontalPodAutoscaler"]["spec"]["metrics"]
    asked = {metric["pods"]["metric"]["name"] for metric in metrics}
    assert asked == exported
    # What the endpoint picker of the inference extension reads by default.
    assert {"vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"} <= shown


def test_the_ray_service_is_one_that_we_build() -> None:
    config = yaml.safe_load(BY_NAME["rayservice.yaml:RayService"]["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert application["import_path"] == "server.ray_app:build"
    options, settings = read_arguments(application["args"], {})
    assert (options.max_replicas, options.num_gpus, options.route_by_prefix) == (4, 1, True)
    assert settings.model == "Qwen/Qwen-7B-Chat"
    workers = BY_NAME["rayservice.yaml:RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert workers["maxReplicas"] == options.max_replicas, "each has a card of its own"


def test_the_kustomization_names_what_is_there() -> None:
    for name in BY_NAME["kustomization.yaml:Kustomization"]["resources"]:
        assert (FOLDER / name).is_file()
