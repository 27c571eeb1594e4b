from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from data.places.python_corpus import python_files, python_path, python_text


def text(name: str, part: str) -> str:
    return python_text(python_path(name).read_bytes(), name, part)


@pytest.mark.parametrize("part", ["code", "tests", "prose"])
def test_names_are_relative_and_order_is_stable(part: str) -> None:
    files = python_files(part)
    assert len(files) > 50
    assert all(name.startswith(("stdlib/", "site-packages/")) for name in files)
    assert list(files) == list(python_files(part))
    assert list(files) != sorted(files)
    assert all(python_path(name) == path for name, path in files.items())


def test_code_and_tests_do_not_overlap() -> None:
    code, tests = (python_files(part).keys() for part in ("code", "tests"))
    assert "stdlib/asyncio/base_events.py" in code
    assert not code & tests
    assert not any("/test/" in name or "/idle_test/" in name for name in code)


def test_a_prefix_is_a_sample_of_the_whole() -> None:
    # Many initial letters, not the first few.
    assert len({name.split("/")[1][0] for name in list(python_files("code"))[:40]}) > 5


def test_prose_is_docstrings_and_descriptions() -> None:
    assert "json.dumps\n\nSerialize ``obj`` to a JSON" in text("stdlib/json/__init__.py", "prose")
    assert "import" not in text("stdlib/bisect.py", "prose")
    description = next(name for name in python_files("prose") if "/pytest-" in name)
    assert "pytest" in text(description, "prose")
    old = b"Metadata-Version: 1.0\r\nDescription: One\r\n        two\r\n"
    assert python_text(old, "site-packages/x/METADATA", "prose") == "One\ntwo"


def test_a_library_without_tests_falls_back_on_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "abc.py").write_text("x = 1\n")
    site = tmp_path / "site-packages" / "pkg" / "tests"
    site.mkdir(parents=True)
    (site / "test_pkg.py").write_text("def test_pkg(): pass\n")
    places = {"stdlib": tmp_path / "lib", "purelib": site.parents[1], "platlib": site.parents[1]}
    monkeypatch.setattr(sysconfig, "get_path", lambda kind: str(places[kind]))
    assert list(python_files("tests")) == ["site-packages/pkg/tests/test_pkg.py"]


def test_files_broken_on_purpose_say_nothing() -> None:
    for part in ("code", "prose"):
        assert python_text(b"# coding: utf-8\nx = '\xff'\n", "stdlib/bad.py", part) == ""
        assert python_text(b"# coding: none-such\n", "stdlib/bad.py", part) == ""
    assert python_text(b"y = 2\n", "stdlib/good.py", "code") == "y = 2\n"
    assert python_text(b'"""said"""\n(', "stdlib/half.py", "prose") == ""
