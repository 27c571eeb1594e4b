from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from data import python_corpus
from data.document import take_bytes
from data.python_corpus import python_documents, python_files


@pytest.mark.parametrize("part", ["code", "tests", "prose"])
def test_names_are_relative_and_order_is_stable(part: str) -> None:
    files = python_files(part)
    assert len(files) > 50
    assert all(file.name.startswith(("stdlib/", "site-packages/")) for file in files)
    assert [file.name for file in files] == [file.name for file in python_files(part)]
    assert [file.name for file in files] != sorted(file.name for file in files)


def test_code_and_tests_do_not_overlap() -> None:
    code, tests = ({file.name for file in python_files(part)} for part in ("code", "tests"))
    assert "stdlib/asyncio/base_events.py" in code
    assert not code & tests
    assert not any("/test/" in name or "/idle_test/" in name for name in code)


def test_a_prefix_is_a_sample_of_the_whole() -> None:
    documents = list(take_bytes(python_documents("code", python_files("code")), 400_000))
    assert sum(len(document.text.encode()) for document in documents) <= 400_000
    assert len({document.where[7] for document in documents}) > 5  # many initial letters, not the first few


def test_prose_is_docstrings_and_descriptions() -> None:
    files = [
        file for file in python_files("prose") if file.name in ("stdlib/json/__init__.py", "stdlib/bisect.py")
    ]
    documents = {document.where: document.text for document in python_documents("prose", files)}
    assert "json.dumps\n\nSerialize ``obj`` to a JSON" in documents["stdlib/json/__init__.py"]
    assert "import" not in documents["stdlib/bisect.py"]
    description = next(file for file in python_files("prose") if "/pytest-" in file.name)
    assert "pytest" in next(python_documents("prose", [description])).text


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
    assert [file.name for file in python_files("tests")] == ["site-packages/pkg/tests/test_pkg.py"]


def test_files_broken_on_purpose_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_bytes(b"# coding: utf-8\nx = '\xff'\n")
    (tmp_path / "good.py").write_text("y = 2\n")
    files = python_corpus._python_files_below(tmp_path, "stdlib", frozenset())
    assert [document.text for document in python_documents("code", files)] == ["y = 2\n"]
