"""Who may import whom: the floors of the house, read off the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TENSOR_LIBRARIES = {"torch", "safetensors", "triton", "numpy", "transformers", "llvmlite"}
# msgspec writes what crosses the pipe; orjson reads files; tiktoken and llguidance know text and ids.
CONTRACT_LIBRARIES = {"msgspec", "orjson", "tiktoken", "llguidance"}
# What computes with tensors, and so must not know the loop.
TENSOR_ROOMS = ("execution", "sampling", "architectures", "layers", "distributed", "quantization", "adapters",
                "backends")  # fmt: skip
# Of the tools: what only speaks to servers, and what only computes.
CLIENTS = ("tools.batch", "tools.chat", "tools.bench", "tools.evaluation")
ENGINE_TOOLS = (
    "tools.process", "tools.convert.run", "tools.merge.run", "tools.export.run",
    "tools.finetune.run", "tools.finetune.training", "tools.finetune.examples", "tools.finetune.base_model",
    "tools.export.options", "tools.perplexity.run", "tools.quantize.run", "tools.quantize.options",
    "tools.doctor.__main__", "tools.doctor.facts", "tools.doctor.advice", "tools.doctor.limits", "tools.doctor.text",
)  # fmt: skip


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Full names of imported modules, also those imported inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            children = {f"{module}.{alias.name}" for alias in node.names}
            submodules = {c for c in children if (ROOT / Path(*c.split("."))).with_suffix(".py").exists()}
            submodules |= {c for c in children if (ROOT / Path(*c.split(".")) / "__init__.py").exists()}
            found |= submodules or {module}
    return found


def _is_standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names


def _ours(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", _modules("prompts"), ids=_name)
def test_prompts_import_only_themselves(path: Path) -> None:
    strangers = {m for m in _imports(path) if not _is_standard(m) and not _ours(m, "prompts")}
    assert not strangers


@pytest.mark.parametrize("path", _modules("model"), ids=_name)
def test_model_floors(path: Path) -> None:
    name, imports = _name(path), _imports(path)
    assert not {m for m in imports if any(_ours(m, other) for other in ("server", "prompts", "tools"))}
    inner = {m for m in imports if _ours(m, "model")}
    foreign = {m.split(".")[0] for m in imports - inner if not _is_standard(m)}
    room = name.split(".")[1] if "." in name else ""
    if room == "contract":
        assert foreign <= CONTRACT_LIBRARIES
        assert all(_ours(m, "model.contract") for m in inner)
    elif room == "scheduling":
        assert not foreign
        assert all(_ours(m, "model.contract") or _ours(m, "model.scheduling") for m in inner)
    elif room in TENSOR_ROOMS:
        assert not {m for m in inner if _ours(m, "model.loop")}
    if not _ours(name, "model.backends.cuda"):
        assert "triton" not in foreign, "Triton lives under backends/cuda only"
    if not _ours(name, "model.backends.cpu"):
        assert "llvmlite" not in foreign, "llvmlite lives under backends/cpu only"
    if room != "backends":
        assert not {m for m in inner if _ours(m, "model.backends.cuda")}, "CUDA only through backends/__init__"


@pytest.mark.parametrize("path", _modules("server"), ids=_name)
def test_server_never_touches_tensors(path: Path) -> None:
    imports = _imports(path)
    assert not {m.split(".")[0] for m in imports} & TENSOR_LIBRARIES
    assert all(m == "model" or _ours(m, "model.contract") for m in imports if _ours(m, "model"))
    assert not {m for m in imports if _ours(m, "prompts.react")}, "the interface of tool formats only"


@pytest.mark.parametrize("path", [p for p in _modules("server/conversion") if p.parent.name != "readers"], ids=_name)
def test_conversion_knows_no_wire_but_in_its_readers(path: Path) -> None:
    assert not {m for m in _imports(path) if _ours(m, "server.wire")}


@pytest.mark.parametrize("path", _modules("tools"), ids=_name)
def test_tools_stay_apart(path: Path) -> None:
    """Clients import no engine, and engine tools no server."""
    name, imports = _name(path), _imports(path)
    if any(_ours(name, client) for client in CLIENTS):
        assert all(_ours(m, "model.contract") for m in imports if _ours(m, "model"))
        assert not {m.split(".")[0] for m in imports} & TENSOR_LIBRARIES
    if name in ENGINE_TOOLS:
        assert not {m for m in imports if _ours(m, "server")}


def test_importing_the_app_does_not_load_torch() -> None:
    code = (
        "import sys, server.app, server.serve, server.__main__, server.settings;"
        f"print(sorted({TENSOR_LIBRARIES!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_shapes_of_requests_and_tokens_are_where_the_readme_says() -> None:
    section = (ROOT / "README.md").read_text().partition("| a request is | made by |")[2].partition("\n\n")[0]
    named = re.findall(r"`([A-Z]\w+)`[^|]*\| `([\w/]+\.py)`", section)
    assert len(named) == 8 + 3
    for name, path in named:
        assert f"class {name}" in (ROOT / path).read_text(), (name, path)
