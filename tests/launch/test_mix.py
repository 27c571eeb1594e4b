from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from base.errors import UmbelError
from configs.compose import compose, save
from configs.schema import RunConfig
from data.manifest import VERSION
from launch.cli import app
from launch.mix import mix_of, sequences_so_far
from launch.screens.mix import mix_screen
from record.events import record_event
from record.folder import RunFolder
from record.metrics import MetricsWriter


def manifest_of(config: RunConfig, rows: int = 1000) -> dict[str, Any]:
    length = config.data.sequence_length
    train = {"rows": rows, "documents": rows, "tokens": rows * length}
    return {
        "version": VERSION,
        "mode": "prepared",
        "packing": "concat",
        "sequence_length": length,
        "sources": {
            name: {"train": dict(train), "files": [], "revision": None} for name in config.data.sources
        },
    }


def drawn(mix: dict[str, Any], width: int) -> list[str]:
    console = Console(width=width, record=True, color_system=None, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(mix_screen(mix))
    return console.export_text().splitlines()


def umbel(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_plan_of_the_whole_run_and_what_is_taken() -> None:
    config = compose(["schedule.steps=100", "schedule.global_batch=10", "schedule.warmup_steps=0"])
    mix = mix_of(config, manifest_of(config), 500)
    assert (mix["sequences"], mix["tokens"], mix["consumed_sequences"]) == (1000, 256_000, 500)
    code = mix["sources"]["code"]
    assert code["share"] == pytest.approx(0.6, abs=0.002)
    assert code["tokens"] == 256_000
    assert code["planned"]["tokens"] == pytest.approx(600 * 256, abs=2 * 256)
    assert code["planned"]["epochs"] == code["planned"]["tokens"] / 256_000
    assert code["consumed"]["epochs"] == pytest.approx(0.3, abs=0.002)
    assert mix["problem"] is None
    assert mix_of(config, manifest_of(config), None)["sources"]["code"]["consumed"] is None


def test_phases_stand_below_with_their_shares() -> None:
    phases = "data.phases=[{from_tokens: 1e6, weights: {code: 1, prose: 1}}]"
    config = compose([phases])
    lines = drawn(mix_of(config, manifest_of(config), 0), 80)
    assert "source  from 0  from 1.0M" in [line.rstrip() for line in lines]
    (tests,) = [line.split() for line in lines[-4:] if line.startswith("tests")]
    assert tests == ["tests", "20.00%", "-"]


def test_a_cap_that_will_be_broken_is_shown_and_told() -> None:
    config = compose(["data.sources.code.max_epochs=2"])
    mix = mix_of(config, manifest_of(config), None)
    assert mix["problem"].startswith(
        "data.sources.code: holds 256,000 tokens, and the run would read it 38.40"
    )
    assert "cap" in drawn(mix, 80)[2]


def test_roots_fits_80_columns() -> None:
    config = compose(["data=roots", "model=bloom_560m"])
    config.data.sources["en"].max_epochs = 1.5
    mix = mix_of(config, manifest_of(config), 1000)
    lines = drawn(mix, 80)
    assert max(len(line) for line in lines) <= 80
    (longest,) = [line for line in lines if line.startswith("nigercongo-all ")]
    assert longest.split()[1] == "0.03%"
    (first,) = [line for line in lines if line.startswith("en ")]
    assert "█" * 10 in first
    assert len(lines) == 28 + 3


def test_estimates_are_marked() -> None:
    config = compose(["data.mode=streaming"])
    estimates = {"code": {"documents": 9, "tokens": 1_000_000}}
    manifest = manifest_of(config) | {"mode": "streaming", "estimates": estimates}
    lines = drawn(mix_of(config, manifest, None), 80)
    (code,) = [line.split() for line in lines if line.startswith("code")]
    assert code[2] == "~1.0M"
    (prose,) = [line.split() for line in lines if line.startswith("prose")]
    assert (prose[2], prose[4]) == ("?", "?")
    assert lines[-1].startswith("~ estimated")


def test_a_run_knows_how_far_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a").create()
    assert sequences_so_far(folder) == 0
    record_event(folder, "start", attempt=1, step=0)
    MetricsWriter(folder, 1).write([{"step": step, "sequences": 4 * step} for step in (1, 2, 3)])
    assert sequences_so_far(folder) == 12
    record_event(folder, "start", attempt=2, step=1)
    assert sequences_so_far(folder) == 4


def test_a_run_tells_its_mixture_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["data=roots", "model=bloom_560m", "run.name=far"])
    folder = RunFolder.of(config).create()
    save(config, folder.run_yaml)
    (folder.path / "data.json").write_text(json.dumps(manifest_of(config)))
    MetricsWriter(folder, 1).write([{"step": 5, "sequences": 320}])
    mix = json.loads(umbel("data", "mix", "--run", "far", "--json").stdout)
    assert mix["consumed_sequences"] == 320
    assert len(mix["sources"]) == 28
    assert "far: " in umbel("data", "mix", "--run", "far").output
    (folder.path / "data.json").write_text(json.dumps(manifest_of(config) | {"version": VERSION + 1}))
    with pytest.raises(UmbelError, match="install a newer Umbel"):
        umbel("data", "mix", "--run", "far")


def test_a_mixture_of_settings_alone_prepares_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    for name, lines in (("few", 60), ("many", 300)):
        texts = [json.dumps({"text": f"{name}: one flower, {number} stalks"}) for number in range(lines)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(texts) + "\n")
    settings = [
        "data=local", "data.sources={few: {path: few.jsonl, license: mit}, many: {path: many.jsonl}}",
        "data.sequence_length=16", "data.tokenizer.vocab_size=300", "data.mixture.weights=proportional",
        "schedule.steps=10", "schedule.warmup_steps=0",
    ]  # fmt: skip
    mix = json.loads(umbel("data", "mix", *settings, "--json").stdout)
    few, many = mix["sources"]["few"], mix["sources"]["many"]
    assert few["share"] + many["share"] == pytest.approx(1)
    assert few["share"] / many["share"] == pytest.approx(few["tokens"] / many["tokens"], rel=0.02)
    assert "mit" in umbel("data", "card", *settings).output
