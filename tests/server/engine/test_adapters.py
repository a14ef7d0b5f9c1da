"""Adapters over HTTP: chosen by name, listed, loaded and unloaded while the server runs, back after a crash."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from model.contract.engine_config import LoadAdapter
from model.contract.errors import AdapterError, EngineUnavailableError, StartupError
from model.contract.files.model_config import read_model_config
from model.contract.messages import AdapterLoaded, ToEngine, UnloadAdapter
from server.engine.adapters import EngineAdapters, ServedAdapter
from server.routes.adapters import load_lora_adapter
from server.settings import Settings
from server.startup import find_adapters
from server.wire.errors import ApiError
from server.wire.shapes.models import LoadAdapterRequest
from tests.conftest import SMALL
from tests.support.adapters import adapter_config, factors, random_adapter, write_adapter
from tests.support.in_process_server import InProcessServer, in_process_server
from tests.support.server_process import Server


@pytest.fixture(scope="module")
def root(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters: four good ones, one with DoRA, one that links to the outside, and one outside of it."""
    model = read_model_config(demo_checkpoint)
    top = tmp_path_factory.mktemp("adapters")
    root = top / "root"
    for seed, name in enumerate(("sql", "poet", "law", "poet2")):
        write_adapter(root / name, adapter_config(), factors(model, seed=seed, size=0.1))
    random_adapter(root / "dora", model, use_dora=True)
    random_adapter(top / "outside", model)
    (root / "escape").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (root / "escape" / name).symlink_to(top / "outside" / name)
    return root


@pytest.fixture(scope="module")
def served(demo_checkpoint: Path, root: Path) -> Iterator[InProcessServer]:
    flags = ("--lora", f"sql={root / 'sql'}", "--allow-lora-updates", "--lora-root", str(root), "--max-loras", "3")
    with in_process_server(demo_checkpoint, *SMALL, *flags, "--max-model-len", "512") as server:
        yield server


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def say(server: Server, model: str) -> str:
    response = post(server, "/v1/completions", model=model, prompt="Hello, ", max_tokens=16, temperature=0)
    assert response.status_code == 200, response.text
    reply = response.json()
    assert reply["model"] == model
    return str(reply["choices"][0]["text"])


def load(server: Server, name: str, path: str, **fields: Any) -> httpx.Response:
    return post(server, "/v1/load_lora_adapter", lora_name=name, lora_path=path, **fields)


def error_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and "Traceback" not in error["message"]
    return str(error["message"])


def listed(server: Server) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in httpx.get(f"{server.url}/v1/models").json()["data"]}


def test_adapters_are_models(served: Server, root: Path) -> None:
    models = listed(served)
    assert models["sql"]["root"] == str(root / "sql")
    assert models["sql"]["parent"] == "Qwen-Demo"
    assert models["sql"]["max_model_len"] == 512
    assert models["Qwen-Demo"]["parent"] is None
    assert httpx.get(f"{served.url}/v1/models/sql").json() == models["sql"]
    base = say(served, "Qwen-Demo")
    assert say(served, "sql") != base == say(served, "Qwen")
    body = {"model": "sql", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    assert post(served, "/v1/chat/completions", **body).json()["model"] == "sql"
    missing = post(served, "/v1/completions", model="nobody", prompt="x")
    assert missing.status_code == 404 and "sql" in error_of(missing)
    assert 'vllm:request_success_total{finished_reason="length",model_name="sql"}' in served.get("/metrics")


def test_routers_see_which_adapters_are_in_use(served: Server) -> None:
    idle = 'vllm:lora_requests_info{max_lora="3",running_lora_adapters="",waiting_lora_adapters=""}'
    assert idle in served.get("/metrics")
    body = {"model": "sql", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert 'running_lora_adapters="sql",waiting_lora_adapters=""' in served.get("/metrics")
    assert any(idle in served.get("/metrics") for _ in range(200)), "the abort is noticed"


def test_loading_and_unloading(served: Server, root: Path) -> None:
    response = load(served, "poet", "poet")
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'poet' added successfully.")
    first = say(served, "poet")
    assert "already been loaded" in error_of(load(served, "poet", "poet2"))
    assert load(served, "poet", str(root / "poet2"), load_inplace=True).status_code == 200
    assert say(served, "poet") != first
    response = post(served, "/v1/unload_lora_adapter", lora_name="poet")
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'poet' removed successfully.")
    gone = post(served, "/v1/unload_lora_adapter", lora_name="poet")
    assert gone.status_code == 404 and "cannot be found" in error_of(gone)
    assert "poet" not in listed(served)
    assert post(served, "/v1/completions", model="poet", prompt="x").status_code == 404
    assert load(served, "poet", "poet").status_code == 200
    assert say(served, "poet") == first
    assert load(served, "law", "law").status_code == 200
    assert "--max-loras" in error_of(load(served, "fourth", "poet2"))
    before = say(served, "law")
    assert load(served, "law", "poet2", load_inplace=True).status_code == 200, "all are taken, and it needs none more"
    assert say(served, "law") != before
    assert post(served, "/v1/unload_lora_adapter", lora_name="law").status_code == 200


@pytest.mark.parametrize(
    ("name", "path", "told"),
    [
        ("x", "../outside", "outside"),
        ("x", "/etc", "outside"),
        ("x", "escape", "outside"),
        ("x", "dora", "DoRA"),
        ("x", "nothing", "no folder"),
        ("x", "a\x00b", "no folder"),
        ("x", ".", "no folder"),
        ("Qwen", "poet", "itself"),
        (" x", "poet", "lora_name"),
        ("*", "poet", "lora_name"),
    ],
)
def test_what_cannot_be_loaded(served: Server, name: str, path: str, told: str) -> None:
    response = load(served, name, path)
    assert response.status_code == 400
    assert told in error_of(response)
    assert post(served, "/v1/load_lora_adapter", lora_name=name).status_code == 400
    assert say(served, "sql")


def test_a_crash_brings_all_of_them_back(served: InProcessServer) -> None:
    assert load(served, "crash", "poet2").status_code == 200
    before = {name: say(served, name) for name in ("sql", "crash", "Qwen")}
    served.lose_engine()
    after = {name: post(served, "/v1/completions", model=name, prompt="Hello, ", max_tokens=16, temperature=0)
             for name in before}  # fmt: skip
    if any(response.status_code == 503 for response in after.values()):  # the death had been noticed
        served.wait_ready()
    assert {name: say(served, name) for name in before} == before


def test_updates_need_leave(server: Server) -> None:
    for path, body in (("load", {"lora_name": "x", "lora_path": "x"}), ("unload", {"lora_name": "x"})):
        response = post(server, f"/v1/{path}_lora_adapter", **body)
        assert response.status_code == 403 and "--allow-lora-updates" in error_of(response)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lora": ["x=/nowhere/at/all"]}, "no such folder"),
        ({"lora": ["x={root}/dora"]}, "DoRA"),
        ({"lora": ["Qwen={root}/sql"]}, "the model itself"),
        ({"lora": ["x"]}, "NAME=PATH"),
        ({"lora": ["x={root}/sql", "x={root}/poet"]}, "twice"),
        ({"lora": ["x={root}/sql", "y={root}/poet"], "max_loras": 1}, "--max-loras is 1"),
    ],
)
def test_a_start_that_cannot_be(demo_checkpoint: Path, root: Path, settings: dict[str, Any], told: str) -> None:
    settings["lora"] = [adapter.format(root=root) for adapter in settings["lora"]]
    with pytest.raises((StartupError, ValueError), match=told):
        asked = Settings(model=str(demo_checkpoint), **settings)
        find_adapters(asked)
        asked.engine_config(demo_checkpoint)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_replicas_of_a_cluster_serve_adapters(
    demo_checkpoint: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.serve")
    from server.cluster import replica

    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="a"))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    monkeypatch.setattr(replica, "configure_logging", lambda *_: None)
    board: Any = SimpleNamespace()
    made = replica.Replica(Settings(model=str(demo_checkpoint), lora=(f"sql={root / 'sql'}",)), board)
    assert [adapter.name for adapter in made._engine.adapters] == ["sql"]


class Engine:
    """What is sent to an engine, and names of adapters in front of it."""

    def __init__(self, *names: str) -> None:
        self.sent: list[ToEngine] = []
        self.adapters = EngineAdapters(self.sent.append, [served_adapter(name) for name in names])

    def ids(self) -> list[int]:
        return [adapter.adapter_id for adapter in self.adapters.to_load()]


def served_adapter(name: str) -> ServedAdapter:
    return ServedAdapter(name, name, Path("/adapters") / name)


async def test_names_and_numbers() -> None:
    engine = Engine("a", "b")
    adapters = engine.adapters
    assert engine.ids() == [1, 2]
    loading = asyncio.create_task(adapters.load(served_adapter("c")))
    await asyncio.sleep(0)
    assert engine.sent == [LoadAdapter(3, "/adapters/c")]
    assert adapters.find("c") is None
    with pytest.raises(AdapterError, match="being loaded"):
        await adapters.load(served_adapter("c"))
    adapters.on_loaded(AdapterLoaded(3, num_bytes=5))
    await loading
    assert [adapter.name for adapter in adapters] == ["a", "b", "c"]
    adapters.add_user(2)
    assert adapters.unload("b") and not adapters.unload("b")
    assert engine.sent[1:] == [UnloadAdapter(2)]
    assert engine.ids() == [1, 3, 2], "a request still waits for it; where room is short those with a name come first"
    adapters.after_ready()
    assert engine.sent[2:] == [UnloadAdapter(2)]
    adapters.remove_user(2)
    assert engine.ids() == [1, 3]


async def test_an_engine_that_dies_or_refuses() -> None:
    engine = Engine("a", "b")
    adapters = engine.adapters
    loading = asyncio.create_task(adapters.load(served_adapter("c")))
    await asyncio.sleep(0)
    adapters.on_lost()
    with pytest.raises(EngineUnavailableError):
        await loading
    loading = asyncio.create_task(adapters.load(served_adapter("c")))
    await asyncio.sleep(0)
    adapters.on_loaded(AdapterLoaded(4, error="no"))
    with pytest.raises(AdapterError, match="no"):
        await loading
    assert engine.ids() == [1, 2]
    adapters.on_ready([AdapterLoaded(1, num_bytes=7), AdapterLoaded(2, error="gone"), AdapterLoaded(9)])
    assert [(adapter.name, adapter.num_bytes) for adapter in adapters] == [("a", 7)]
    assert engine.ids() == [1]
    assert engine.sent[-1] == UnloadAdapter(9), "it was unloaded while the engine started"


async def test_an_engine_that_went_while_an_adapter_was_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to it would be lost, and the name taken for good."""
    engine = Engine()
    answers = iter([None, EngineUnavailableError("gone")])

    def require_open() -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr("server.routes.adapters._find", lambda *_: Path("/adapters/sql"))
    services: Any = SimpleNamespace(
        settings=Settings(model="m", allow_lora_updates=True),
        engine=SimpleNamespace(require_open=require_open, adapters=engine.adapters),
    )
    with pytest.raises(EngineUnavailableError, match="gone"):
        await load_lora_adapter(LoadAdapterRequest(lora_name="sql", lora_path="sql"), services)
    assert not engine.sent


async def test_adapters_are_looked_for_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def find(*_: Any) -> Path:
        threads.append(threading.current_thread())
        raise AdapterError("none")

    async def run(work: Any) -> Any:
        return work()

    monkeypatch.setattr("server.routes.adapters._find", find)
    settings = SimpleNamespace(allow_lora_updates=True, served_names=("m",), lora_root=None)
    engine, off_loop = SimpleNamespace(require_open=lambda: None), SimpleNamespace(run=run)
    services: Any = SimpleNamespace(settings=settings, engine=engine, off_loop=off_loop)
    with pytest.raises(ApiError, match="none"):
        await load_lora_adapter(LoadAdapterRequest(lora_name="a", lora_path="b/c"), services)
    assert threads and threads[0] is not threading.current_thread()


def test_how_many_there_may_be() -> None:
    assert Settings(model="m").max_adapters == 0
    assert Settings(model="m", lora=("a=x", "b=y")).max_adapters == 2
    assert Settings(model="m", allow_lora_updates=True).max_adapters == 8
    assert Settings(model="m", max_loras=100).max_adapters == 100
    assert Settings(model="m", lora="a=x,b=y=z").adapters == {"a": "x", "b": "y=z"}
