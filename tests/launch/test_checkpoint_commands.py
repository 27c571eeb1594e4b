from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner, Result

from base.errors import UmbelError
from base.files import sha256_file
from launch.checkpoints import find_checkpoint
from launch.cli import app
from launch.screens import reading as reading_screen
from launch.screens.checkpoint import checkpoint_card, groups_table, norms_table
from launch.screens.reading import reading
from launch.trust import described
from support.portable_state import State, make_state, save

SHAPES = {"transformer.word_embeddings.weight": [32, 8], "transformer.ln_f.weight": [8]} | {
    f"transformer.h.{block}.mlp.weight": [8, 8] for block in range(12)
}
FIRST = "state-00001-of-00002.safetensors"


def state(seed: int = 0) -> State:
    made = make_state(seed, SHAPES)
    decayed = [name for name in SHAPES if "ln" not in name]
    return made._replace(frozen={}, groups=[decayed, sorted(SHAPES.keys() - set(decayed))])


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the run "demo", with those of steps 100 and 120; here is the folder above runs/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    run = tmp_path / "runs" / "demo"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("{}")
    save(run / "checkpoints", state(), step=100)
    later = state()
    later.flat["transformer.h.3.mlp.weight", "master"][5] += 0.25
    ties = {"lm_head.weight": "transformer.word_embeddings.weight"}
    save(run / "checkpoints", later, step=120, world_size=3, tied=ties)
    return run / "checkpoints"


def umbel(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["checkpoint", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answer(*arguments: str) -> Any:
    return json.loads(umbel(*arguments, "--json").stdout)


def damage(folder: Path) -> None:
    path = folder / FIRST
    path.write_bytes(path.read_bytes()[:-1] + b"\xee")


# Finding ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_found_by_all_its_names(checkpoints: Path) -> None:
    for place in ("demo@100", "runs/demo@100", "runs/demo/checkpoints/step-00000100"):
        assert find_checkpoint(place).resolve() == checkpoints / "step-00000100"
    for place in ("demo", "runs/demo", "runs/demo/checkpoints"):
        assert find_checkpoint(place).resolve() == checkpoints / "step-00000120"
    assert find_checkpoint("demo", 100).name == "step-00000100"
    assert find_checkpoint("runs/demo/checkpoints@100").name == "step-00000100"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("demo@7", "demo: has no checkpoint of step 7; there are: 100, 120"),
        ("dmeo", "did you mean 'demo'"),
        ("dmeo@100", "did you mean 'demo'"),
        ("demo@" + "9" * 30, "no such run"),
        ("empty", "empty: is no run, and holds no checkpoint of Umbel's; 'umbel checkpoint import' reads"),
    ],
)
def test_what_is_not_there_is_said(checkpoints: Path, place: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(UmbelError, match=message):
        find_checkpoint(place)


@pytest.mark.parametrize(
    "name",
    ["global_step10/mp_rank_00_model_states.pt", "random_states_0.pkl", "pytorch_model.bin", "optimizer.bin"],
)
def test_pickles_of_other_programs_are_never_loaded(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = Path("theirs") / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cos\nmkdir\n(S'executed'\ntR.")
    for place in ("theirs", str(path)):
        with pytest.raises(
            UmbelError, match="none is ever loaded here; its owner, who trusts it, converts it with 'umb"
        ):
            umbel("verify", place)
    assert not Path("executed").exists()


# verify ----------------------------------------------------------------------------------------------------


def test_verify_says_what_was_checked(checkpoints: Path) -> None:
    told = umbel("verify", "demo")
    assert told.exit_code == 0
    assert "ok: step 120 of demo" in told.output
    assert "3 files' sizes and headers, sha256 of" in told.output
    found = answer("verify", "demo@100")
    assert found["ok"] and found["mode"] == "full" and found["hashed"] == found["bytes"]
    assert found["manifest_sha256"] == sha256_file(checkpoints / "step-00000100" / "manifest.json")
    assert answer("verify", "demo", "--sizes")["hashed"] == 0
    assert "no float is NaN" in umbel("verify", "demo", "--finite").output


def test_verify_names_the_file_and_the_fact(checkpoints: Path) -> None:
    damage(checkpoints / "step-00000100")
    with pytest.raises(UmbelError, match=rf"{FIRST}: its content is not what was saved") as caught:
        umbel("verify", "demo", "--step", "100")
    assert caught.value.exit_code == 2
    told = umbel("verify", "demo@100", "--json")
    assert told.exit_code == 2
    assert json.loads(told.stdout) == {"ok": False, "folder": "step-00000100", "error": str(caught.value)}
    umbel("verify", "demo@100", "--sizes")
    (checkpoints / "step-00000120" / "manifest.json").unlink()
    with pytest.raises(UmbelError, match=r"manifest\.json: cannot be read"):
        umbel("verify", "runs/demo/checkpoints/step-00000120")


def test_verify_finds_a_nan_if_asked_to(checkpoints: Path) -> None:
    spoilt = state()
    spoilt.flat["transformer.ln_f.weight", "exp_avg"][2] = float("nan")
    save(checkpoints, spoilt, step=140)
    assert umbel("verify", "demo").exit_code == 0
    with pytest.raises(
        UmbelError, match=r"'transformer.ln_f.weight\|exp_avg' holds NaN or infinity, first at element 2"
    ):
        umbel("verify", "demo", "--finite")


def test_verify_all_tells_of_each(checkpoints: Path) -> None:
    assert umbel("verify", "demo", "--all").exit_code == 0
    damage(checkpoints / "step-00000100")
    told = umbel("verify", "demo", "--all")
    assert told.exit_code == 2
    assert "step-00000120  ok" in told.output
    assert f"{FIRST}: its content" in " ".join(told.output.split())
    found = answer("verify", "demo", "--all")
    assert [(each["folder"], each["ok"]) for each in found] == [
        ("step-00000120", True),
        ("step-00000100", False),
    ]


@pytest.mark.parametrize("options", [["--sizes", "--finite"], ["--all", "--step", "100"]])
def test_options_that_exclude_each_other(checkpoints: Path, options: list[str]) -> None:
    with pytest.raises(UmbelError, match="exclude each other"):
        umbel("verify", "demo", *options)


# inspect ---------------------------------------------------------------------------------------------------


def test_inspect_shows_groups_ties_and_norms(checkpoints: Path) -> None:
    told = umbel("inspect", "demo").output
    for part in ("lm_head.weight = transformer.word_embeddings.weight", "betas [0.9, 0.95]", "weights"):
        assert part in told
    assert (
        told.index("transformer.word_embeddings ")
        < told.index("transformer.h.2 ")
        < told.index("transformer.h.10 ")
    )
    assert "transformer.h.2" not in umbel("inspect", "demo", "--no-norms").output
    found = answer("inspect", "demo", "--norms")
    assert [layer["layer"] for layer in found["norms"]][:2] == [
        "transformer.word_embeddings",
        "transformer.h.0",
    ]
    assert "norms" not in answer("inspect", "demo", "--no-norms")


def test_norms_of_what_is_large_are_shown_when_asked_for(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.trust.NORMS_BELOW", 100)
    folder = checkpoints / "step-00000100"
    assert "norms" not in described(folder, None)
    assert "norms" in described(folder, True)


def lines(part: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(part)
    return console.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 120])
def test_screens_fit(checkpoints: Path, width: int) -> None:
    facts = described(checkpoints / "step-00000120", True)
    for part in (checkpoint_card(facts), groups_table(facts["groups"]), norms_table(facts["norms"])):
        assert max(map(len, lines(part, width))) <= width
    # A heading of two lines, a line for each layer, and one for all.
    assert len(lines(norms_table(facts["norms"]), width)) == 2 + len(facts["norms"]) + 1


def test_what_a_stranger_wrote_moves_no_cursor(checkpoints: Path) -> None:
    topology = {"world_size": 2, "zero_stage": 1, "engine": "x", "\x1b[31m": "\x1b]0;title\x07\nline"}
    save(checkpoints, state(), step=130, topology=topology)
    told = umbel("inspect", "demo@130").output
    assert "\x1b" not in told
    assert "?[31m ?]0;title??line" in told


# diff ------------------------------------------------------------------------------------------------------


def test_diff_tells_what_differs_and_by_how_much(checkpoints: Path) -> None:
    told = umbel("diff", "demo@100", "demo@120")
    assert told.exit_code == 1
    flat = " ".join(told.output.split())
    for part in (
        "fact A B step 100 120",
        "topology.world_size 2 3",
        "transformer.h.3.mlp.weight|master",
        "1 of 64",
        "1 of 44 tensors differ; the largest relative change is",
    ):
        assert part in flat
    found = json.loads(umbel("diff", "demo@100", "demo@120", "--json").stdout)
    assert [change["tensor"] for change in found["changed"]] == ["transformer.h.3.mlp.weight|master"]
    assert found["changed"][0]["max_abs"] == pytest.approx(0.25, rel=1e-6)
    assert not found["equal"]


def test_diff_of_one_state_saved_twice_is_none(checkpoints: Path) -> None:
    save(checkpoints.parent / "other", state(), step=100, world_size=5)
    told = umbel("diff", "demo@100", "runs/demo/other")
    assert told.exit_code == 0
    assert "all 44 tensors are equal to the bit; who saved it differs" in " ".join(told.output.split())
    assert umbel("diff", "demo", "demo").exit_code == 0


def test_diff_of_many_shows_some_and_json_all(checkpoints: Path) -> None:
    save(checkpoints, state(seed=1), step=140)
    told = umbel("diff", "demo@120", "demo@140").output
    assert "23 more: --json has all" in told
    found = json.loads(umbel("diff", "demo@120", "demo@140", "--json").stdout)
    assert len(found["changed"]) == 43
    assert found["summary"].startswith("43 of 44 tensors differ")


def test_diff_in_json_holds_no_infinity(checkpoints: Path) -> None:
    spoilt = state()
    spoilt.flat["transformer.ln_f.weight", "master"][0] = float("inf")
    save(checkpoints, spoilt, step=140)
    told = umbel("diff", "demo@140", "demo@120", "--json").stdout
    found = json.loads(told, parse_constant=lambda text: pytest.fail(text))
    assert found["changed"][0]["relative"] is None


def test_diff_of_a_damaged_one_is_an_error(checkpoints: Path) -> None:
    path = checkpoints / "step-00000100" / FIRST
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UmbelError, match=FIRST):
        umbel("diff", "demo@100", "demo")


# A bar where it takes long ---------------------------------------------------------------------------------


def test_a_bar_is_shown_for_much_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_screen, "SHOWN_FROM", 1000)
    for terminal, total, shown in ((True, 1000, True), (True, 999, False), (False, 1000, False)):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        with reading("verifying", total, console) as tell:
            tell(total)
        assert ("verifying" in console.file.getvalue()) == shown  # type: ignore[attr-defined]
