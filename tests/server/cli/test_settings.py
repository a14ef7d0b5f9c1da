"""Flags, variables and files: precedence, validation, messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model.contract.engine_config import EngineConfig
from model.contract.errors import ConfigError
from server.__main__ import build_parser
from server.app import create_app
from server.cli.flag_table import with_table
from server.config.sources import load_settings
from server.config.types import parse_size
from server.conversion.defaults import GenerationDefaults
from server.engine.client import EngineClient
from server.settings import Settings, flag_name
from tests.support.paths import ROOT
from tests.support.vocabulary import byte_tokenizer
from tools.check_config import check_config


def test_a_flag_beats_a_variable_beats_a_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('model = "from-file"\nport = 1\nhost = "h"\nmax-num-seqs = 7\n')
    environ = {"QWEN_SERVER_PORT": "2", "QWEN_SERVER_MODEL": "from-env", "PATH": "x"}
    settings = load_settings({"port": "3"}, environ, str(file))
    assert (settings.port, settings.model, settings.host, settings.max_num_seqs) == (3, "from-env", "h", 7)
    assert settings.block_size == 16


def test_yaml_and_the_variable_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model: m\nserved_model_name: [a, b]\nkv_cache_memory: 2GB\nno_prefix_caching: true\n")
    settings = load_settings({}, {"QWEN_SERVER_CONFIG": str(file)})
    config = settings.engine_config(tmp_path)
    assert settings.served_names == ("a", "b")
    assert config.kv_cache_memory_bytes == 2_000_000_000
    assert config.enable_prefix_caching is False


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(flag_name(name) in text for name in Settings.model_fields if name != "model")


def test_the_readme_lists_the_flags_as_they_are() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python -m server.cli.flag_table README.md"
    with pytest.raises(ValueError, match="needs the lines"):
        with_table("no markers")


def test_flags_and_lists() -> None:
    argv = ["serve", "m", "--port", "9", "--api-key", "a", "--api-key", "b,c", "--no-prefix-caching"]
    arguments = vars(build_parser().parse_args(argv))
    arguments.pop("command")
    settings = load_settings(arguments, {})
    assert (settings.port, settings.api_key, settings.no_prefix_caching) == (9, ("a", "b,c"), True)
    assert load_settings({"model": "m"}, {"QWEN_SERVER_API_KEY": "a, b"}).api_key == ("a", "b")


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ({"model": ""}, {}, "MODEL: .*at least 1 character"),
        ({"model": "m", "port": "99999"}, {}, "--port: .*65535, not '99999'"),
        ({"model": "m", "dtype": "int3"}, {}, "--dtype: .*bfloat16"),
        ({"model": "m"}, {"QWEN_SERVER_DTYPE": "int3"}, "QWEN_SERVER_DTYPE: "),
        ({"model": "m"}, {"QWEN_SERVER_PRT": "1"}, "QWEN_SERVER_PRT; did you mean QWEN_SERVER_PORT"),
        ({"model": "m", "kv_cache_memory": "lots"}, {}, "--kv-cache-memory: should be a number of bytes"),
        ({"model": "m", "kv_cache_memory": "0"}, {}, "--kv-cache-memory: .*greater than 0"),
        ({"model": "m", "gpu_memory_utilization": "nan"}, {}, "--gpu-memory-utilization: "),
        ({"model": "m", "api_auth": "nocolon"}, {}, "--api-auth: "),
        ({"model": "m", "device": "tpu"}, {}, "--device: "),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(flags: dict[str, str], environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_settings(flags, environ)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "limit"), [(None, 512), ("context", None), ("64", 64), (" 64", "a number of tokens"), ("0", "a number")]
)
def test_the_default_length_of_a_chat(flag: str | None, limit: int | str | None) -> None:
    flags = {"model": "x"} if flag is None else {"model": "x", "default_max_tokens": flag}
    if isinstance(limit, str):
        with pytest.raises(ConfigError, match=f"--default-max-tokens: should be {limit}"):
            load_settings(flags, {})
        return
    settings = load_settings(flags, {})
    engine = EngineClient(EngineConfig(checkpoint_path="x"), start_timeout_s=1, timeout_s=1, on_fatal=print)
    app = create_app(settings, byte_tokenizer(), GenerationDefaults(max_new_tokens=512), engine)
    assert app.state.services.converter.default_max_tokens == limit


def test_a_secret_is_never_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"model": "m", "api_auth": "hunter2"}, {})
    assert "hunter2" not in str(caught.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    for text, words in (("port = ", "not valid TOML"), ("colour = 1", "unknown setting 'colour'")):
        bad.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_settings({"model": "m"}, {}, str(bad))
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings({"model": "m"}, {}, str(tmp_path / "none.toml"))
    listing = tmp_path / "list.yaml"
    listing.write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold settings"):
        load_settings({"model": "m"}, {}, str(listing))


HIDDEN = "sekret-4711"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (f"api_key: *{HIDDEN}", "line 3, column 10: found undefined alias"),
        (f"api_key: !{HIDDEN}", "line 3, column 10: could not determine a constructor for the tag"),
        (f"api_key: !{HIDDEN}'x'", "line 3, column 10: "),
        (f"api_key: !s!{HIDDEN}", "line 3, column 10: "),
        (f"api_key: {HIDDEN}: 1", "line 3, column 21: mapping values are not allowed here"),
        (f"api_key: '{HIDDEN}", "found unexpected end of stream"),
        (f"api_key: @{HIDDEN}", "found character '@' that cannot start any token"),
        (f"api_key: [{HIDDEN}", "expected ',' or ']', but got '<stream end>'"),
        (f"api_key: {{{HIDDEN}: [}}", "line 3"),
        (f'api_key: "\\q{HIDDEN}"', "found unknown escape character 'q'"),
        (f"api_key: !!int {HIDDEN}", "not valid YAML"),
        (f"api_key: &{HIDDEN} a\nx: &{HIDDEN} b", "not valid YAML|unknown setting 'x'"),
        (f"? [{HIDDEN}]\n: 1", "found unhashable key"),
        (f"api_key: {HIDDEN}\x00", "not valid YAML"),
    ],
)
def test_a_broken_file_is_not_quoted(line: str, place: str, tmp_path: Path) -> None:
    """The broken line may be the one with the key."""
    file = tmp_path / "settings.yaml"
    file.write_text(f"# settings\nport: 80\n{line}\n")
    with pytest.raises(ConfigError, match=re.escape(place).replace("\\|", "|")) as caught:
        load_settings({"model": "m"}, {}, str(file))
    assert HIDDEN not in str(caught.value)
    assert caught.value.__cause__ is None, "nor by a traceback"
    toml = tmp_path / "settings.toml"
    toml.write_text(line)
    with pytest.raises(ConfigError) as caught:
        load_settings({"model": "m"}, {}, str(toml))
    assert HIDDEN not in str(caught.value)


@pytest.mark.parametrize("value", ["471", "4.71", "0471", "12:34:56", "yes", "2026-01-01", "[471]", "{a: b}", ""])
@pytest.mark.parametrize("name", ["api_key", "api_auth", "served_model_name", "model", "api_key_file"])
def test_texts_that_yaml_makes_something_else_of(name: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"{name}: {value}\n")
    if value == "" and name not in ("api_key", "model"):
        load_settings({}, {"QWEN_SERVER_MODEL": "m"}, str(file))
        return
    words = "is given, but holds no key" if value == "" and name == "api_key" else "must be text; put it in quotes"
    with pytest.raises(ConfigError, match=f"settings.yaml: {name}: {words}") as caught:
        load_settings({}, {} if name == "model" else {"QWEN_SERVER_MODEL": "m"}, str(file))
    assert name in ("model", "served_model_name") or "71" not in str(caught.value).replace(str(file), "")


@pytest.mark.parametrize("key", ["sk-4711", "/4711+base64==", "-----BEGIN PRIVATE KEY-----\n4711\n" * 200])
def test_a_key_in_place_of_its_file_is_not_told(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^--api-key-file: cannot read the key file") as caught:
        load_settings({"model": "m", "api_key_file": key}, {}).credentials()
    assert "4711" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^--ssl-keyfile: no such key file") as caught:
        load_settings({"model": "m", "ssl_certfile": __file__, "ssl_keyfile": key}, {}).tls()
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    ["http://ada:4711@collector:4318", "http://ada:47/11@x@collector:4318/v1?a", "https://collector/?token=4711"],
)
def test_credentials_of_the_collector_are_not_told(endpoint: str) -> None:
    for text in (check_config({"otel_endpoint": endpoint}, {}, None), refusal(endpoint[5:])):
        assert "collector" in text
        assert not re.search("4711|47/11|ada", text)


def refusal(endpoint: str) -> str:
    with pytest.raises(ConfigError, match="otel-endpoint") as caught:
        load_settings({"model": "m", "otel_endpoint": endpoint}, {})
    return str(caught.value)


def test_keys_from_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nalpha\n\nbeta\n")
    settings = load_settings({"model": "m", "api_key_file": str(keys)}, {})
    credentials = settings.credentials()
    assert credentials.caller("Bearer beta")
    assert credentials.caller("Bearer # ours") is None
    assert "alpha" not in repr((settings, credentials))
    keys.write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        load_settings({"model": "m", "api_key_file": str(keys)}, {}).credentials()


def test_a_service_of_the_same_name_in_kubernetes() -> None:
    links = {
        "QWEN_SERVER_SERVICE_HOST": "10.0.0.1",
        "QWEN_SERVER_SERVICE_PORT": "8000",
        "QWEN_SERVER_SERVICE_PORT_HTTP": "8000",
        "QWEN_SERVER_PORT": "tcp://10.0.0.1:8000",
        "QWEN_SERVER_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "QWEN_SERVER_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings({"model": "m"}, links).port == 8000
    for variable, text in (("QWEN_SERVER_PORT", "http"), ("QWEN_SERVER_PORTS", "1"), ("QWEN_SERVER_SERVICE", "x")):
        with pytest.raises(ConfigError, match=variable):
            load_settings({"model": "m"}, {**links, variable: text})


@pytest.mark.parametrize("text", ["", " , ", ","])
def test_a_key_that_was_never_filled_in_does_not_open_the_server(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^QWEN_SERVER_API_KEY: is given, but holds no key"):
        load_settings({"model": "m"}, {"QWEN_SERVER_API_KEY": text})
    with pytest.raises(ConfigError, match=r"^--api-key: is given, but holds no key"):
        load_settings({"model": "m", "api_key": ["k", text.strip(", ")]}, {})
    assert load_settings({"model": "m", "api_key": [" k "]}, {}).api_key == ("k",)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1048576", 1 << 20), ("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("8g", 8 << 30), ("1.5 KiB", 1536), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_names_of_a_model(tmp_path: Path) -> None:
    def names(model: str, *given: str) -> tuple[str, ...]:
        return load_settings({"model": model, "served_model_name": list(given)}, {}).served_names

    assert names("Qwen/Qwen-7B-Chat") == ("Qwen/Qwen-7B-Chat", "Qwen-7B-Chat", "Qwen")
    assert names("Qwen/Qwen-7B-Chat", "mine", "gpt", "mine") == ("mine", "gpt")
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert names(f"{folder}/") == ("my-model", "Qwen")


def test_who_shares_with_whom(tmp_path: Path) -> None:
    given = {
        "model": "m",
        "max_running_per_key": 3,
        "allow_priority": True,
        "share_prefix_cache": True,
        "guard_tool_results": True,
        "allowed_host": ["a.example"],
    }
    settings = load_settings(given, {"QWEN_SERVER_TRUSTED_PROXY": "10.0.0.0/8, ::1"})
    engine = settings.engine_config(tmp_path)
    assert (engine.max_running_per_caller, engine.allow_priority) == (3, True)
    assert [str(network) for network in settings.trusted_proxy] == ["10.0.0.0/8", "::1/128"]
    assert settings.allowed_host == ("a.example",)
    for wrong in ("proxy", "10.0.0.1/8"):
        with pytest.raises(ConfigError, match=r"--trusted-proxy: .*network"):
            load_settings({"model": "m", "trusted_proxy": [wrong]}, {})
