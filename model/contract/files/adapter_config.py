"""What a LoRA adapter says of itself: `adapter_config.json` as peft writes it.

Pure. What an adapter asks for and this server does not compute is refused by name: served without it, the adapter would
answer as nobody trained it to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.contract.errors import AdapterError, CheckpointError
from model.contract.files.checkpoint_folder import ADAPTER_CONFIG, training_steps
from model.contract.files.json_file import MAX_CONFIG_BYTES, read_json

# Modules that may have low-rank factors, by the last part of their names in the published spelling and in transformers'
# Qwen2 layout.
TARGETS = ("c_attn", "c_proj", "w1", "w2", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Modules that may be trained whole, and their names in the published spelling.
SAVED_MODULES = {"wte": "transformer.wte", "embed_tokens": "transformer.wte", "lm_head": "lm_head"}

# Initialisations that subtract from the base what they put into the adapter: it fits that base alone. peft can convert
# them when it saves, and then writes another value here.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Keys of adapters that compute something else, and what those are called.
_REFUSED = {
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "biases of its own (lora_bias)",
    "use_qalora": "QALoRA (use_qalora)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "arrow_config": "Arrow (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "velora_config": "VeLoRA (velora_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
    "layer_replication": "replicated layers (layer_replication)",
    "target_parameters": "single parameters (target_parameters)",
    "trainable_token_indices": "single rows of the embedding (trainable_token_indices)",
}

# Other models whose weights may have the very shapes of ours: a Qwen1.5 of 1.8B has those of the first generation.
_OTHER_MODELS = re.compile(r"[\w.-]+/(?P<name>Qwen(?:1\.5|[2-9]|-VL|-Audio)[\w.-]*)")

# Each module is looked for among all names.
_MAX_NAMES = 2048
# Patterns of peft are regular expressions, and Python's take exponential time on some of them: those are refused.
_MAX_PATTERNS = 16
_MAX_PATTERN_CHARS = 200
_MAX_QUANTIFIERS = 2
_MAX_GROUPS = 2
_MAX_ALTERNATIVES = 32
_LITERAL = re.compile(r"(?:[\w-]|\\?\.)+")
_COSTLY = re.compile(r"\)[*+{]|\(\?|\\[1-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The numbers of an adapter.

    Attributes:
        path: the file, for messages.
        rank: the factors' rank, where no pattern says otherwise.
        alpha: the product of the factors is multiplied by alpha / rank.
        use_rslora: the product is multiplied by alpha / sqrt(rank) instead.
        rank_pattern: other ranks, by patterns of module names.
        alpha_pattern: other alphas, by patterns of module names.
        targets: last parts of the names of trained modules; None where the file has a pattern in their place.
        saved_modules: modules that were trained whole, in the published spelling.
        base_name: the base model, as the trainer called it.
    """

    path: Path
    rank: int
    alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    targets: tuple[str, ...] | None = None
    saved_modules: tuple[str, ...] = ()
    base_name: str | None = None

    @classmethod
    def from_folder(cls, folder: str | Path) -> AdapterConfig:
        """Reads the `adapter_config.json` of an adapter's folder.

        Raises:
            AdapterError: it is missing or malformed, or asks for what this server does not compute.
        """
        folder = Path(folder)
        path = folder / ADAPTER_CONFIG
        if not path.is_file():
            steps = [step for step in training_steps(folder) if (step / ADAPTER_CONFIG).exists()]
            newest = f"; {steps[0]} is one" if steps else ""
            raise AdapterError(f"{folder}: holds no {ADAPTER_CONFIG}: not an adapter as peft saves it{newest}")
        try:
            raw = read_json(path, MAX_CONFIG_BYTES)
        except CheckpointError as error:
            raise AdapterError(str(error)) from error
        _refuse_other_kinds(raw, path)
        base_name = raw.get("base_model_name_or_path")
        if isinstance(base_name, str) and (other := _OTHER_MODELS.fullmatch(base_name)) is not None:
            raise AdapterError(f"{path}: the adapter was trained on {other['name']}, which is no first-generation Qwen")
        return cls(
            path=path,
            rank=int(_number(raw.get("r"), "r", path, whole=True)),
            alpha=_number(raw.get("lora_alpha", 8), "lora_alpha", path),
            use_rslora=_flag(raw, "use_rslora", path),
            rank_pattern=_pattern(raw, "rank_pattern", path, whole=True),
            alpha_pattern=_pattern(raw, "alpha_pattern", path),
            targets=_targets(raw.get("target_modules"), path),
            saved_modules=_saved_modules(raw.get("modules_to_save"), path),
            base_name=base_name if isinstance(base_name, str) and base_name else None,
        )

    @property
    def max_rank(self) -> int:
        """The largest rank of any of its factors."""
        return max([self.rank, *(int(rank) for rank in self.rank_pattern.values())])

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's factors; the module as the adapter calls it, without peft's prefix."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """Returns the number that multiplies the product of a module's factors."""
        rank, alpha = self.rank_of(module), _matching(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _refuse_other_kinds(raw: dict[str, Any], path: Path) -> None:
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(f"{path}: peft_type is {kind!r}; LORA adapters are served")
    for key, name in _REFUSED.items():
        if raw.get(key):
            raise AdapterError(f"{path}: {name} is not supported; plain LoRA is")
    bias = raw.get("bias", "none")
    if bias != "none":
        raise AdapterError(f"{path}: trained biases (bias={bias!r}) are not supported; bias='none' is")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights={start!r} changed the base model too; save the adapter converted to plain LoRA"
            " (path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    for key, value in raw.items():
        if key.startswith("use_") and key != "use_rslora" and value:
            raise AdapterError(f"{path}: {key} is not supported; plain LoRA and use_rslora are")


def _flag(raw: dict[str, Any], key: str, path: Path) -> bool:
    value = raw.get(key)
    if not isinstance(value, bool | None):
        raise AdapterError(f"{path}: {key} must be true or false, not {value!r}")
    return bool(value)


def _number(value: object, what: str, path: Path, *, whole: bool = False) -> float:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1e6:
        kind = "whole number" if whole else "number"
        raise AdapterError(f"{path}: {what} must be a positive {kind} below a million, not {str(value)[:80]}")
    return float(value)


def _pattern(raw: dict[str, Any], key: str, path: Path, *, whole: bool = False) -> dict[str, float]:
    found = raw.get(key) or {}
    if not isinstance(found, dict):
        raise AdapterError(f"{path}: {key} must map names to numbers")
    if len(found) > _MAX_NAMES:
        raise AdapterError(f"{path}: {key} has {len(found):,} entries; no model has so many modules")
    expressions = [pattern for pattern in found if not _LITERAL.fullmatch(pattern)]
    if len(expressions) > _MAX_PATTERNS:
        raise AdapterError(f"{path}: {key} has more than {_MAX_PATTERNS} regular expressions; give the names")
    for pattern in expressions:
        if _may_take_long(pattern):
            raise AdapterError(f"{path}: {key}: {pattern[:80]!r} may take too long to match; give the modules' names")
        try:
            re.compile(pattern)
        except (re.error, OverflowError) as error:
            raise AdapterError(f"{path}: {key}: {pattern[:80]!r} is no regular expression ({error})") from error
    return {name: _number(value, f"{key} of {name[:80]!r}", path, whole=whole) for name, value in found.items()}


def _may_take_long(pattern: str) -> bool:
    """Whether a regular expression may read a name in too many ways."""
    num_quantifiers = sum(pattern.replace("*?", "*").replace("+?", "+").count(sign) for sign in "*+?{")
    return (
        len(pattern) > _MAX_PATTERN_CHARS
        or num_quantifiers > _MAX_QUANTIFIERS
        or pattern.count("(") > _MAX_GROUPS
        or pattern.count("|") > _MAX_ALTERNATIVES
        or _COSTLY.search(pattern) is not None
    )


def _matching(pattern: Mapping[str, float], module: str, otherwise: float) -> float:
    """Looks a module up as peft does: the first pattern that is its name, or what follows a dot in it, counts."""
    for key, number in pattern.items():
        if _LITERAL.fullmatch(key):
            name = key.replace("\\", "")
            if module == name or module.endswith(f".{name}"):
                return number
        elif re.match(rf"(.*\.)?({key})$", module):
            return number
    return otherwise


def _names(value: object, key: str, path: Path) -> Iterator[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(f"{path}: {key} must be a list of names")
    yield from value


def _targets(value: object, path: Path) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None  # a pattern, or "all-linear": the weights tell what it matched
    targets = tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in _names(value, "target_modules", path)))
    for target in targets:
        if target not in TARGETS:
            raise AdapterError(f"{path}: target_modules names {target[:80]!r}; served are {', '.join(TARGETS)}")
    return targets


def _saved_modules(value: object, path: Path) -> tuple[str, ...]:
    if value is None:
        return ()
    modules = []
    for name in _names(value, "modules_to_save", path):
        module = SAVED_MODULES.get(name.rsplit(".", 1)[-1])
        if module is None:
            raise AdapterError(f"{path}: modules_to_save names {name[:80]!r}; served are wte and lm_head")
        modules.append(module)
    return tuple(dict.fromkeys(modules))
