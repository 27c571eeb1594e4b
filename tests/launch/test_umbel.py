from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import umbel
from base.errors import RunFailed, UmbelError

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_names_every_verb_and_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import atexit, sys, umbel; sys.argv = ['umbel', '--help']\n"
        "heavy = {'torch', 'hydra', 'numpy', 'datasets', 'transformers', 'yaml', 'psutil'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        "umbel.main()"
    )
    done = run("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    for verb in (
        "demo",
        "plan",
        "launch",
        "resume",
        "status",
        "logs",
        "stop",
        "rollback",
        "cancel",
        "top",
        "preflight",
        "generate",
        "export",
        "eval",
        "doctor",
    ):
        assert f"│ {verb} " in done.stdout


def test_a_module_that_shadows_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("raise SystemExit('taken')\n")
    done = run("-m", "umbel", "status", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"umbel: error: import data finds {tmp_path / 'data.py'} in place of {ROOT / 'data'}"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("made", ["data.py", "data/__init__.py", "train/__init__.py"])
def test_the_shadowing_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    file = tmp_path / made
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    room = made.split("/")[0].removesuffix(".py")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == room]:
        monkeypatch.delitem(sys.modules, name)
    assert umbel.shadowed() == (room, str(file))


def test_nothing_is_shadowed_here() -> None:
    assert umbel.shadowed() is None


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            UmbelError("no such key", where="optimizer.lrr", fix="did you mean 'lr'?"),
            2,
            "optimizer.lrr: no such key",
        ),
        (RunFailed("loss is NaN\nat step 3", where="rank 1"), 1, "rank 1: loss is NaN at step 3"),
        (
            OSError(28, "No space left on device", "runs/a/run.yaml"),
            1,
            "runs/a/run.yaml: No space left on device",
        ),
        (KeyError("step"), 1, "KeyError: 'step'; a fault of Umbel's own: UMBEL_DEBUG=1 shows where"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    text: str,
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("launch.cli.app", fail)
    monkeypatch.delenv("UMBEL_DEBUG", raising=False)
    with pytest.raises(SystemExit) as exit_:
        umbel.main()
    assert exit_.value.code == code
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.count("\n") == (1 if text else 0)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise UmbelError("inside")

    monkeypatch.setattr("launch.cli.app", fail)
    monkeypatch.setenv("UMBEL_DEBUG", "1")
    with pytest.raises(UmbelError, match="inside"):
        umbel.main()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lauch"], "Did you mean 'launch'"),
        (["launch", "--foo"], "--foo; umbel launch --help"),
        (["tokenizer", "train"], "'--out'"),
        (["data", "batches", "--world", "0"], "'--world'"),
        (["generate"], "'RUN'"),
    ],
)
def test_misuse_is_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run("-c", "import umbel; umbel.main()", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("umbel: error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_without_a_verb_the_help_is_shown(tmp_path: Path, arguments: list[str]) -> None:
    done = run("-c", "import umbel; umbel.main()", *arguments, cwd=tmp_path)
    assert "Usage: umbel" in done.stdout
    assert (done.returncode, done.stderr.strip()) == (2, "")


def test_the_version(tmp_path: Path) -> None:
    from importlib.metadata import version

    done = run("-c", "import umbel; umbel.main()", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"umbel {version('umbel')}\n")
