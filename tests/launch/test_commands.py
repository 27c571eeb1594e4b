from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from base.errors import UmbelError
from configs.compose import compose, save
from launch.batches import prepared_rows
from launch.cli import app
from record.control import stop_requested
from record.events import record_event
from record.folder import RunFolder
from record.lock import RunLock
from record.metrics import MetricsWriter


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def make_run(runs: Path, name: str) -> RunFolder:
    folder = RunFolder(runs / name).create()
    save(compose(["experiment=demo", f"run.name={name}", "schedule.steps=200"]), folder.run_yaml)
    record_event(folder, "start", attempt=1, step=0, world_size=2, zero_stage=2)
    MetricsWriter(folder, 1).write([{"step": 7, "loss": 3.5, "tokens": 70, "tokens_per_second": 10.0}])
    record_event(folder, "checkpoint", step=7, seconds=0.5, bytes=100)
    record_event(folder, "stopped", step=7, reason="asked")
    return folder


def umbel(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_status_of_all_and_of_one(runs: Path) -> None:
    assert "start one" in umbel("status").output
    make_run(runs, "alpha")
    make_run(runs, "beta")
    table = umbel("status").output
    assert "alpha" in table
    assert "7/200" in table
    assert [run["name"] for run in json.loads(umbel("status", "--json").stdout)] == ["alpha", "beta"]
    one = json.loads(umbel("status", "beta", "--json").stdout)
    assert (one["state"], one["step"], one["loss"], one["checkpoint_step"]) == ("stopped", 7, 3.5, 7)


def test_an_unknown_run_is_named(runs: Path) -> None:
    make_run(runs, "alpha")
    for verb in ("status", "logs", "stop", "resume"):
        with pytest.raises(UmbelError, match="did you mean 'alpha'"):
            umbel(verb, "alhpa")


def test_a_run_that_cannot_be_read_hides_no_other(runs: Path) -> None:
    make_run(runs, "a")
    (runs / "b").mkdir()
    (runs / "b" / "run.yaml").write_text(":{")
    shown = umbel("status").output
    assert "unreadable" in shown
    assert "run.yaml" in shown
    found = json.loads(umbel("status", "--json").stdout)
    assert [run["name"] for run in found if run["state"] != "unreadable"] == ["a"]


def test_stop_asks_only_a_run_that_runs(runs: Path) -> None:
    folder = make_run(runs, "alpha")
    assert "is not running; it is stopped" in umbel("stop", "alpha").output
    assert not stop_requested(folder)
    with RunLock(folder):
        umbel("stop", "alpha")
    assert stop_requested(folder)


def test_logs_of_a_rank(runs: Path) -> None:
    folder = make_run(runs, "alpha")
    (folder.logs / "launch.log").write_text("from the launcher\n")
    assert umbel("logs", "alpha").output == "from the launcher\n"
    log = folder.rank_log(1, 1)
    log.parent.mkdir()
    log.write_text("from rank 1\n")
    assert umbel("logs", "alpha", "--rank", "1", "-f").output == "from rank 1\n"
    with pytest.raises(UmbelError, match="no log of rank 5 in attempt 1; ranks that wrote one: 1"):
        umbel("logs", "alpha", "--rank", "5")


def test_doctor_never_shows_a_token(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not runs.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("WANDB_API_KEY", "another-secret-value")
    findings = {finding["name"]: finding for finding in json.loads(umbel("doctor", "--json").stdout)}
    assert findings["hub token"] == {"name": "hub token", "level": "ok", "text": "present"}
    assert "secret" not in umbel("doctor").output
    assert findings["cores"]["text"].isdigit()


def test_checkpoint_inspect_says_which_steps_there_are(runs: Path) -> None:
    folder = make_run(runs, "alpha")
    with pytest.raises(UmbelError, match="alpha: has no checkpoint yet"):
        umbel("checkpoint", "inspect", "alpha")
    (folder.checkpoints / "step-00000007").mkdir()
    with pytest.raises(UmbelError, match="no checkpoint of step 8; there are: 7"):
        umbel("checkpoint", "inspect", "alpha", "--step", "8")


@pytest.fixture
def text(runs: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines = [json.dumps({"text": f"one flower, {number} stalks, one point"}) for number in range(200)]
    (runs.parent / "text.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("UMBEL_CACHE", str(runs.parent / "cache"))
    return [
        "data.path=text.jsonl", "data.sequence_length=16", "data.tokenizer.vocab_size=300",
        "schedule.global_batch=4",
    ]  # fmt: skip


def test_batches_are_the_same_at_every_world_size(text: list[str]) -> None:
    def rows(*arguments: str) -> list[list[int]]:
        found = json.loads(umbel("data", "batches", *text, "--json", "--steps", "2:4", *arguments).stdout)
        return [ids for batch in found for ids in batch["input_ids"]]

    whole = rows()
    assert len(whole) == 8
    first, second = rows("--world", "2", "--rank", "0"), rows("--world", "2", "--rank", "1")
    assert [row for both in zip(first, second, strict=True) for row in both] == whole
    first, second = (rows("--world", "2", "--rank", rank, "--micro-batch", "2") for rank in "01")
    assert [*first[:2], *second[:2], *first[2:], *second[2:]] == whole
    assert "first ids" in umbel("data", "batches", *text).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "4:4"], "holds no step"),
        (["--steps", "0"], "holds no step"),
        (["--steps", "x"], "is no range of steps"),
        (["--steps", "1:99999999"], "99999998 is beyond schedule.steps=1000"),
        (["--world", "2", "--rank", "2"], "rank 2 does not exist among 2 processes"),
        (["--world", "3"], "4 is not divisible by 3 processes"),
    ],
)
def test_batches_that_do_not_exist(text: list[str], arguments: list[str], message: str) -> None:
    with pytest.raises(UmbelError, match=message):
        umbel("data", "batches", *text, *arguments)


def test_inspect_shows_text_and_source(text: list[str]) -> None:
    found = json.loads(umbel("data", "inspect", *text, "--step", "1", "--json").stdout)
    assert len(found) == 4
    assert "stalks" in found[0]["text"]
    assert "slot 2" in umbel("data", "inspect", *text, "--step", "1", "--slot", "2").output


def test_a_run_is_looked_at_with_the_data_it_began_with(text: list[str], runs: Path) -> None:
    config = compose([*text, "run.name=alpha"])
    folder = RunFolder.of(config).create()
    save(config, folder.run_yaml)
    (folder.path / "data.json").write_text(json.dumps(prepared_rows(config).manifest))
    shown = ["data", "inspect", "--run", "alpha", "--slot", "0"]
    assert "stalks" in umbel(*shown).output
    file = runs.parent / "text.jsonl"
    file.write_text(file.read_text().replace("flower, 7 ", "flower, 8 "))
    for command in (shown, ["data", "prepare", "--run", "alpha"]):
        with pytest.raises(UmbelError, match=r"text\.jsonl: has changed since the run began"):
            umbel(*command)
    assert "slot 0" in umbel(*shown, "data.sequence_length=8").output


def test_prepare_and_a_tokenizer_of_ones_own(text: list[str], runs: Path) -> None:
    assert "held-out rows" in umbel("data", "prepare", *text).output
    umbel("tokenizer", "train", "--out", "mine", *text)
    assert (runs.parent / "mine" / "tokenizer.json").is_file()
    with pytest.raises(UmbelError, match="mine: is in the way"):
        umbel("tokenizer", "train", "--out", "mine", *text)
    umbel("data", "prepare", *text, "data.tokenizer.path=mine")


def test_plan_as_json_starts_nothing(runs: Path) -> None:
    plan = json.loads(umbel("plan", "experiment=demo", "cluster.device=cpu", "--json").stdout)
    assert plan["parameters"] > plan["trainable"] - 1 > 1_000_000
    assert plan["config"]["schedule"]["global_batch"] == plan["global_batch"]
    assert not runs.exists()


def test_plan_shows_which_keys_another_run_has(runs: Path) -> None:
    make_run(runs, "alpha")
    output = umbel("plan", "experiment=demo", "run.name=alpha", "run.seed=99", "cluster.device=cpu").output
    assert "belongs to another run" in output
    assert "run.seed" in output
