"""Quotas are read as `lfs quota` and `quota` print them, by tools of that name that print such tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.supervise import quota
from launch.supervise.machine import Machine
from launch.supervise.quota import quota_shares

LUSTRE = "     /scratch   900    0 1000       -      45*      50  0       -\n"
KERNEL = """Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/export/long/name 800 900 1000 0 10 0 0 0
"""


def tool(folder: Path, name: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


@pytest.mark.parametrize(
    ("name", "printed", "expected"),
    [
        ("lfs", LUSTRE, {"bytes": 0.9, "files": 0.9}),
        ("quota", KERNEL, {"bytes": 0.8}),
        ("lfs", "Some errors happened when getting quota info.\n", {}),
        ("quota", "Disk quotas for user me (uid 1000): none\n", {}),
    ],
)
def test_tables_become_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, printed: str, expected: dict[str, float]
) -> None:
    tool(tmp_path / "bin", name, printed, monkeypatch)
    monkeypatch.setattr(quota.shutil, "which", lambda wanted: wanted if wanted == name else None)
    assert quota_shares(tmp_path) == expected


def test_without_a_tool_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert quota_shares(tmp_path) == {}


def test_a_tool_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "lfs", LUSTRE, monkeypatch)
    (tmp_path / "bin" / "lfs").write_text("#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(quota, "SECONDS", 0.1)
    assert quota_shares(tmp_path) == {}


def test_servers_are_asked_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "_look", lambda _: None)
    asked: list[Path] = []

    def ask(path: Path) -> dict[str, float]:
        asked.append(path)
        return {"bytes": 0.5}

    monkeypatch.setattr("launch.supervise.machine.quota_shares", ask)
    looking = Machine({"run": tmp_path})
    assert [looking._disk(tmp_path)["quota"] for _ in range(3)] == [{"bytes": 0.5}] * 3
    assert asked == [tmp_path]
