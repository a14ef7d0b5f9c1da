"""The libraries that training needs, imported when it begins: an extra brings them, the server does without."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from model.contract.errors import ConfigError

_EXTRA = "pip install 'qwen-server[finetune]'"


def require(*names: str) -> list[Any]:
    """Imports modules by name.

    Raises:
        ConfigError: one is not installed.
    """
    modules: list[ModuleType] = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            missing = error.name or name
            how = "pip install deepspeed" if missing == "deepspeed" else _EXTRA
            raise ConfigError(f"fine-tuning needs {missing.split('.')[0]}, which is not installed: {how}") from error
    return modules
