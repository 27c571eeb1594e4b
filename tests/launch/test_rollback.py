"""Going back to an earlier checkpoint: refused where it must be, whole wherever it is killed, and as if the
steps beyond had never been."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from base.errors import UmbelError
from base.files import read_json
from checkpoint import manifest as manifests
from checkpoint.folders import steps
from configs.compose import load, save
from data.manifest import write_manifest
from data.prepare import prepare_run
from launch.cli import app
from launch.commands.rollback import rollback as command
from record.events import read_events, record_event
from record.folder import RunFolder
from record.identity import run_id
from record.lock import RunLock
from record.metrics import MetricsWriter, read_metrics
from record.rollback import finish_rollback, rollbacks
from record.state import run_state
from support.portable_state import make_state
from support.portable_state import save as save_state
from support.runs import TINY, tiny, write_corpus

SAVER = Path(__file__).parents[1] / "checkpoint" / "crashing_saver.py"
BATCH, LAST = 4, 8


def umbel(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def back(folder: RunFolder, to: int, *more: str) -> str:
    return umbel("rollback", str(folder.path), "--to", str(to), "--yes", *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return invent(tmp_path_factory.mktemp("made"))


def invent(home: Path, *overrides: str) -> RunFolder:
    """What a run of 8 steps leaves that saved every second one: real files, invented numbers."""
    config = tiny(home, f"schedule.steps={LAST}", *overrides)
    folder = RunFolder.of(config).create()
    save(config, folder.run_yaml)
    write_manifest(folder.path / "data.json", prepare_run(config).manifest)
    record_event(folder, "start", attempt=1, step=0, world_size=1, zero_stage=0)
    for step in range(1, LAST + 1):
        line = {"step": step, "sequences": BATCH * step, "tokens": 1024 * step, "loss": 1 / step}
        MetricsWriter(folder, 1).write([line])
        if step % 2 == 0:
            order = {"seed": 1234, "lanes": BATCH, "number": BATCH * step, "rows": {"data": BATCH * step}}
            facts = {"run_id": run_id(folder), "sequences": BATCH * step, "extra": {"order": order}}
            save_state(folder.checkpoints, make_state(step), step, 1, **facts)
            record_event(folder, "checkpoint", step=step, seconds=0.1, bytes=1)
    record_event(folder, "finished", step=LAST)
    return folder


@pytest.fixture
def folder(made: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(made.path, tmp_path / "elsewhere" / "tiny")))


def standing(folder: RunFolder) -> tuple[list[int], list[list[int]], list[int]]:
    """Steps of the checkpoints, skipped ranges, steps that metrics show."""
    shown = [line["step"] for line in read_metrics(folder)]
    return sorted(steps(folder.checkpoints)), load(folder.run_yaml).data.skip, shown


def content(folder: RunFolder) -> dict[str, bytes]:
    """Every file of a run but its locks."""
    files = (path for path in folder.path.rglob("*") if path.is_file() and path.parent != folder.control)
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in files}


def test_all_views_agree_after_it(folder: RunFolder) -> None:
    told = back(folder, 4)
    assert "from step 8 to step 4 given up 4 steps, 4.1k tokens" in told
    assert "step-00000006 (" in told
    assert "tiny is back at step 4; to go on: umbel resume" in told
    assert f"rm -r {folder.checkpoints / 'rolled-back-0001'}" in told
    assert standing(folder) == ([2, 4], [], [1, 2, 3, 4])
    assert run_state(folder, read_events(folder)) == "rolled back"
    aside = steps(folder.checkpoints / "rolled-back-0001")
    assert sorted(aside) == [6, 8]
    (event,) = rollbacks(read_events(folder))
    assert {key: event[key] for key in ("to", "from", "tokens", "skip")} == {
        "to": 4, "from": 8, "tokens": 4096, "skip": [],
    }  # fmt: skip
    assert "keys" not in event
    facts = json.loads(umbel("status", str(folder.path), "--json"))
    assert (facts["state"], facts["step"], facts["rolled_back_from"]) == ("rolled back", 4, 8)
    assert '"step": 4' in umbel("checkpoint", "inspect", str(folder.path), "--json")


def test_data_that_was_read_is_skipped(folder: RunFolder) -> None:
    assert "numbers 16 to 31 of the global order, 16 sequences" in back(folder, 4, "--skip-data", "to-here")
    assert standing(folder) == ([2, 4], [[16, 32]], [1, 2, 3, 4])
    rolled, changed = read_events(folder)[-2:]
    assert rolled["skip"] == [[16, 32]]
    assert (changed["event"], changed["keys"]) == ("change", {"data.skip": [[], [[16, 32]]]})


def test_a_second_one_goes_further_back_and_its_range_is_joined(folder: RunFolder) -> None:
    back(folder, 6, "--skip-data", "to-here")
    assert load(folder.run_yaml).data.skip == [[24, 32]]
    back(folder, 2, "--skip-data", "to-here")
    assert standing(folder) == ([2], [[8, 32]], [1, 2])
    assert sorted(steps(folder.checkpoints / "rolled-back-0001")) == [8]
    assert sorted(steps(folder.checkpoints / "rolled-back-0002")) == [4, 6]
    assert [event["from"] for event in rollbacks(read_events(folder))] == [8, 6]


def test_a_range_of_ones_own(folder: RunFolder) -> None:
    back(folder, 4, "--skip-data", "20:24")
    back(folder, 4, "--skip-data", "30:40")
    assert standing(folder) == ([2, 4], [[20, 24], [30, 40]], [1, 2, 3, 4])
    with pytest.raises(UmbelError, match="step 4 is its newest checkpoint already"):
        back(folder, 4, "--skip-data", "30:40")


def test_a_step_that_failed_has_read_its_data(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=2, step=6)
    record_event(folder, "failed", rank=0, error="the loss is nan", exit_code=1)
    assert "numbers 24 to 27" in back(folder, 6, "--skip-data", "to-here")
    record_event(folder, "failed", rank=0, error="no CUDA device is visible", exit_code=2)
    with pytest.raises(UmbelError, match="nothing was read after step 6"):
        back(folder, 6, "--skip-data", "to-here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["5"], "tiny: has no checkpoint of step 5; there are: 2, 4, 6, 8"),
        (["8"], "tiny: step 8 is its newest checkpoint already; umbel resume "),
        (["8", "--skip-data", "to-here"], "--skip-data: nothing was read after step 8"),
        (["4", "--skip-data", "8"], "--skip-data: '8' is no range; write A:B"),
        (["4", "--skip-data", "24:24"], "is no range"),
        (["4", "--skip-data", "15:24"], "15:24 begins before 16, where the checkpoint of step 4 goes on"),
    ],
)
def test_refusals_change_nothing(folder: RunFolder, arguments: list[str], message: str) -> None:
    before = content(folder)
    with pytest.raises(UmbelError) as refused:
        back(folder, int(arguments[0]), *arguments[1:])
    assert message in str(refused.value)
    assert content(folder) == before


def test_a_damaged_or_foreign_checkpoint_is_refused(folder: RunFolder) -> None:
    (state,) = (folder.checkpoints / "step-00000004").glob("*.safetensors")
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    before = content(folder)
    with pytest.raises(UmbelError, match=r"step-00000004.*sha256 differs"):
        back(folder, 4)
    (folder.path / "run_id").write_text("another\n")
    with pytest.raises(UmbelError, match="belongs to run 'demo'"):
        back(folder, 6)
    (folder.path / "run_id").write_bytes(before["run_id"])
    assert content(folder) == before
    back(folder, 2)
    assert standing(folder) == ([2], [], [1, 2])


@pytest.mark.parametrize("name", ["lock", "launch"])
def test_a_run_in_use_is_refused(folder: RunFolder, name: str) -> None:
    before = content(folder)
    with RunLock(folder, name), pytest.raises(UmbelError, match="is in use by process"):
        back(folder, 4)
    assert content(folder) == before


def test_streaming_skips_whole_batches(tmp_path: Path) -> None:
    folder = invent(tmp_path, "data.mode=streaming", "data.shuffle_window=10")
    with pytest.raises(UmbelError, match=r"no multiple of schedule.global_batch=4.*skip \[16, 24\]"):
        back(folder, 4, "--skip-data", "16:21")
    assert rollbacks(read_events(folder)) == []
    back(folder, 4, "--skip-data", "16:24")
    assert load(folder.run_yaml).data.skip == [[16, 24]]


def test_data_that_would_not_last_is_said_before_anything_changes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    source = f"{{path: '{corpus}', max_epochs: 3}}"
    folder = invent(tmp_path, "data.path=null", f"data.sources={{data: {source}}}")
    with pytest.raises(UmbelError, match="max_epochs allows 3"):
        back(folder, 4, "--skip-data", "16:9999")
    assert rollbacks(read_events(folder)) == []
    back(folder, 4, "--skip-data", "to-here")


def test_without_records_the_checkpoints_say_how_far_it_was(folder: RunFolder) -> None:
    folder.events.unlink()
    folder.metrics.unlink()
    assert "from step 8 to step 4 given up 4 steps, 4.1k tokens" in back(folder, 4)


def ask(folder: RunFolder, answer: bytes) -> tuple[int, str]:
    """`umbel rollback` on a terminal, and what somebody types there."""
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "umbel", "rollback", str(folder.path), "--to", "4"]
    child = subprocess.Popen(line, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.close(theirs)
    os.write(ours, answer)
    told = child.communicate(timeout=60)[0].decode()
    os.close(ours)
    return child.returncode, told


def test_it_asks_first(folder: RunFolder) -> None:
    before = content(folder)
    with pytest.raises(UmbelError, match="this is no terminal; add --yes"):
        umbel("rollback", str(folder.path), "--to", "4")
    code, told = ask(folder, b"\n")
    assert code == 1, told
    assert "Go back? [y/N]" in told
    assert "nothing was changed" in told
    assert content(folder) == before
    code, told = ask(folder, b"y\n")
    assert code == 0, told
    assert standing(folder) == ([2, 4], [], [1, 2, 3, 4])


# Kills --------------------------------------------------------------------------------------------------


def _saver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crashing_saver", SAVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_killed_before_every_change_of_the_disk_the_next_start_completes_it(
    folder: RunFolder, tmp_path: Path
) -> None:
    """The second of two rollbacks dies at each of its steps, and what completes it dies once, too."""
    saver = _saver()
    back(folder, 6, "--skip-data", "to-here")
    before, codes = standing(folder), []
    while not codes or codes[-1] == 9:
        number = len(codes)
        victim = RunFolder(Path(shutil.copytree(folder.path, tmp_path / str(number) / "tiny")))

        def go_back(victim: RunFolder = victim, number: int = number) -> None:
            saver.die_before_change(number)
            command(str(victim.path), to=4, skip_data="to-here", yes=True)

        def go_on(victim: RunFolder = victim, number: int = number) -> None:
            saver.die_before_change(number // 3)
            finish_rollback(victim)

        codes.append(saver.in_child(go_back))
        assert codes[-1] in (0, 9)
        assert saver.in_child(go_on) in (0, 9)
        if number % 2:
            finish_rollback(victim)  # as a worker's start does
        else:
            with pytest.raises(UmbelError, match="newest checkpoint already"):
                back(victim, max(steps(victim.checkpoints)))
        events = read_events(victim)
        if len(rollbacks(events)) == 1:
            assert standing(victim) == before
            continue
        assert standing(victim) == ([2, 4], [[16, 32]], [1, 2, 3, 4]), number
        assert sorted(steps(victim.checkpoints / "rolled-back-0001")) == [8]
        assert sorted(steps(victim.checkpoints / "rolled-back-0002")) == [6]
        assert [event["event"] for event in events[-2:]] == ["rollback", "change"]
        assert not list(victim.path.rglob("*.tmp")) or codes[-1] == 9
    assert len(codes) > 15, "that many changes make a rollback"
    assert len(rollbacks(read_events(victim))) == 2


# From end to end ----------------------------------------------------------------------------------------


def shell(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "umbel", *arguments], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def killed_after_the_event(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("record.rollback._set_aside", lambda *_: os._exit(9))
    command(str(folder.path), to=4, skip_data="to-here", yes=True)


def state_files(checkpoint: Path) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in manifests.read(checkpoint)["files"]}


def numbers(home: Path) -> dict[int, list[int]]:
    """The numbers of the order that each step of the run reads."""
    batches = shell(
        home, "data", "batches", "--run", "tiny", "--steps", "1:9", "--micro-batch", "4", "--json"
    )
    return {batch["step"]: batch["numbers"] for batch in json.loads(batches)}


@pytest.mark.slow
def test_a_run_that_went_back_is_the_run_that_never_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    more = ("data.path=corpus.jsonl", f"schedule.steps={LAST}", "checkpoint.every=2", "optimizer.lr=5e-3")
    shell(tmp_path, "launch", "--yes", *TINY, *more)
    folder = RunFolder(tmp_path / "runs" / "tiny")
    first, read = by_step(folder), numbers(tmp_path)

    shell(tmp_path, "rollback", "tiny", "--to", "4", "--yes")
    shell(tmp_path, "resume", "tiny")
    assert by_step(folder) == first, "the same steps with the same numbers to the bit"
    aside = folder.checkpoints / "rolled-back-0001" / "step-00000008"
    assert state_files(folder.checkpoints / "step-00000008") == state_files(aside)

    assert _saver().in_child(lambda: killed_after_the_event(folder, monkeypatch)) == 9
    assert load(folder.run_yaml).data.skip == []
    shell(tmp_path, "resume", "tiny")
    cured = by_step(folder)
    assert list(cured) == list(first)
    for step in first:
        assert (cured[step] == first[step]) == (step <= 4), step
    assert numbers(tmp_path) == {step: [n + (0 if step <= 4 else 16) for n in read[step]] for step in read}
    inspected = json.loads(shell(tmp_path, "data", "inspect", "--run", "tiny", "--step", "5", "--json"))
    assert [sequence["number"] for sequence in inspected] == [32, 33, 34, 35]
    order = read_json(folder.checkpoints / "step-00000008" / "manifest.json")["extra"]["order"]
    assert order["number"] == 48
    story = [event["event"] for event in read_events(folder)]
    assert [kind for kind in story if kind in ("start", "rollback", "change", "finished")] == [
        "start", "finished", "rollback", "start", "finished", "rollback", "change", "start", "finished",
    ]  # fmt: skip


def by_step(folder: RunFolder) -> dict[int, dict[str, Any]]:
    same = ("loss", "lr", "grad_norm", "sequences", "tokens")
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, LAST + 1)), "each step once"
    return {line["step"]: {key: line[key] for key in same} for line in lines}
