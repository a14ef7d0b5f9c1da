"""Compiled kernels are kept, and nothing is run that somebody else could have put there."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from model.backends.cpu import jit, object_cache
from model.backends.cpu.object_cache import ObjectCache, user_cache

ADDS = """
define void @adds(ptr %arguments) {
  %at = load ptr, ptr %arguments
  %number = load i64, ptr %at
  %sum = add i64 %number, 5
  store i64 %sum, ptr %at
  ret void
}
"""


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def only_file(caches: Path) -> Path:
    (path,) = (caches / "qwen-server" / "cpu-kernels").iterdir()
    return path


def five_more(number: int) -> int:
    code = jit.compile_functions(ADDS, ["adds"])
    assert code is not None
    result = ctypes.c_int64(number)
    code.run("adds", 1, ctypes.addressof(result))
    return result.value


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been compiled."""
    texts: list[str] = []
    real = jit._object

    def compile_text(llvm: object, target: object, machine: object, text: str) -> bytes:
        texts.append(text)
        return real(llvm, target, machine, text)

    monkeypatch.setattr(jit, "_object", compile_text)
    return texts


def test_a_kernel_is_compiled_once(caches: Path, compiled: list[str]) -> None:
    pytest.importorskip("llvmlite", reason="the kernels need llvmlite")
    assert [five_more(2_000), five_more(3_000)] == [2_005, 3_005]
    assert len(compiled) == 1
    assert stat.S_IMODE(only_file(caches).stat().st_mode) == 0o600
    assert stat.S_IMODE(only_file(caches).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(200), None])
def test_a_file_that_is_not_whole_is_compiled_again(caches: Path, compiled: list[str], content: bytes | None) -> None:
    pytest.importorskip("llvmlite", reason="the kernels need llvmlite")
    five_more(1_000)
    whole = only_file(caches).read_bytes()
    only_file(caches).write_bytes(whole[:-1] if content is None else content)
    assert [five_more(2_000), five_more(3_000)] == [2_005, 3_005]
    assert len(compiled) == 2
    assert only_file(caches).read_bytes() == whole


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def make_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / "elsewhere"))


STRANGERS: dict[str, Callable[[Path], None]] = {
    "others may write to the file": lambda path: path.chmod(0o620),
    "others may write to the folder": lambda path: path.parent.chmod(0o777),
    "a link": make_link,
    "a pipe": make_fifo,
    "of another kernel": lambda path: path.write_bytes(bytes(32) + path.read_bytes()[32:]),
}


@pytest.mark.parametrize("how", STRANGERS)
def test_what_a_stranger_could_have_put_there_is_not_believed(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ObjectCache(tmp_path / "kernels")
    cache.keep("source", b"code")
    assert cache.read("source") == b"code"
    STRANGERS[how](next((tmp_path / "kernels").iterdir()))
    assert cache.read("source") is cache.read("source") is None
    assert len(caplog.records) == (how.startswith("others") or how == "a pipe"), "told once, not for each kernel"


def test_an_object_is_that_of_its_source(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "kernels")
    cache.keep("one", b"code")
    one = next((tmp_path / "kernels").iterdir())
    cache.keep("two", b"other")
    two = next(path for path in (tmp_path / "kernels").iterdir() if path != one)
    one.replace(two)
    assert cache.read("one") is cache.read("two") is None


def test_files_of_someone_else_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ObjectCache(tmp_path)
    tmp_path.chmod(0o700)
    cache.keep("source", b"code")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert cache.read("source") is None
    cache.keep("another", b"code")
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_place_for_it_kernels_are_compiled(caches: Path, compiled: list[str]) -> None:
    pytest.importorskip("llvmlite", reason="the kernels need llvmlite")
    (caches / "qwen-server").write_text("a file")
    assert [five_more(2_000), five_more(3_000)] == [2_005, 3_005]
    assert len(compiled) == 2


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    ObjectCache(tmp_path / "kernels").keep("source", b"code")
    assert list((tmp_path / "kernels").iterdir()) == []


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_cache, "_MAX_FILES", 3)
    cache = ObjectCache(tmp_path / "kernels")
    for number in range(5):
        cache.keep(str(number), b"code")
        for path in (tmp_path / "kernels").iterdir():
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert [cache.read(str(number)) for number in range(5)] == [None, None, b"code", b"code", b"code"]


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setattr(Path, "home", home)
    cache = user_cache()
    cache.keep("source", b"code")
    assert cache.read("source") is None
