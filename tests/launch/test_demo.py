from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from launch.demo import Learned, config_of, free_name, half_done
from launch.screens.demo import learned_screen
from record.events import record_event
from record.folder import RunFolder

LEARNED = Learned(
    unigram_entropy=6.703, first_loss=9.0,
    handover_step=100, handover_loss=5.37, final_step=200, final_loss=4.34,
    held_out={"code": 5.0, "tests": 4.7, "prose": 5.1}, sample="def __init__(self, [bold]name):\n    pass",
)  # fmt: skip


def drawn(learned: Learned) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(learned_screen(learned))
    return file.getvalue()


def test_the_screen_fits_and_shows_the_text_as_it_is() -> None:
    text = drawn(LEARNED)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "def __init__(self, [bold]name):" in text
    assert text.count("✓") == 6
    assert "1.8 nats below mere frequencies" in text


def test_a_demo_that_learned_nothing_says_so() -> None:
    import dataclasses

    failed = dataclasses.replace(LEARNED, held_out={"code": 6.6})
    assert not failed.well_below
    assert "✗" in drawn(failed)


def test_nothing_of_an_earlier_demo_is_overwritten(tmp_path: Path) -> None:
    place = [f"run.dir={tmp_path}"]
    assert free_name(place) == "demo"
    folder = RunFolder(tmp_path / "demo").create()
    folder.run_yaml.write_text("")
    record_event(folder, "stopped", step=3)
    assert free_name(place) == "demo", "one that was interrupted goes on"
    record_event(folder, "finished", step=200)
    assert free_name(place) == "demo-2"


@pytest.mark.parametrize("override", ["schedule.steps=4000", "optimizer.lr=0.1"])
def test_overrides_reach_the_demo(override: str) -> None:
    config = config_of("demo", [override])
    assert (config.parallelism.processes, config.parallelism.zero_stage) == (2, 2)
    assert override in (f"schedule.steps={config.schedule.steps}", f"optimizer.lr={config.optimizer.lr}")


def test_a_demo_interrupted_in_its_second_half_goes_on_there(tmp_path: Path) -> None:
    config = config_of("demo", [f"run.dir={tmp_path}", "schedule.steps=200"])
    folder = RunFolder(tmp_path / "demo").create()
    assert not half_done(config)
    record_event(folder, "checkpoint", step=99)
    assert not half_done(config)
    record_event(folder, "checkpoint", step=100)
    assert half_done(config)
