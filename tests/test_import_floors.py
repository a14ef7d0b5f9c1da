"""Who may import whom: the floors of the house, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PURE = {
    "model",
    "model.errors",
    "model.sampling_params",
    "model.messages",
    "model.engine_config",
    "model.checkpoint_folder",
    "model.config",
    "model.watchdog",
    "model.memory_plan",
    "model.quantize_options",
    "model.safetensors_header",
    "model.json_file",
    "model.vocabulary",
    "model.weight_files",
    "model.sequence",
    "model.block_manager",
    "model.free_extents",
    "model.callers",
    "model.log_text",
    "model.residents",
    "model.scheduler",
}
TEXT = {"model.tokenizer", "model.detokenizer", "model.grammar_compiler"}
TEXT_LIBRARIES = {"tiktoken", "llguidance"}
# orjson writes what crosses the pipe; it is data in, data out.
PURE_LIBRARIES = {"orjson"}
TENSOR_LIBRARIES = {"torch", "safetensors", "triton", "numpy", "transformers"}


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
    assert not {m for m in imports if _ours(m, "server") or _ours(m, "prompts")}
    foreign = {m for m in imports if not _is_standard(m) and not _ours(m, "model")}
    inner = {m for m in imports if _ours(m, "model")}
    if name in PURE:
        assert foreign <= PURE_LIBRARIES
        assert inner <= PURE
    elif name in TEXT:
        assert {m.split(".")[0] for m in foreign} <= TEXT_LIBRARIES
        assert inner <= PURE | TEXT
    if not name.startswith("model.backends.cuda"):
        assert not {m for m in foreign if m.split(".")[0] == "triton"}, "Triton lives under backends/cuda only"
    if not name.startswith("model.backends"):
        assert not {m for m in inner if m.startswith("model.backends.cuda")}, "CUDA only through backends/__init__"


@pytest.mark.parametrize("path", _modules("server"), ids=_name)
def test_server_never_touches_tensors(path: Path) -> None:
    imports = _imports(path)
    assert not {m for m in imports if m.split(".")[0] in TENSOR_LIBRARIES}
    assert {m for m in imports if _ours(m, "model")} <= PURE | TEXT


def test_importing_the_app_does_not_load_torch() -> None:
    code = (
        "import sys, server.app, server.serve, server.__main__, server.settings;"
        f"print(sorted({TENSOR_LIBRARIES!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
