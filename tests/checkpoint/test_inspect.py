from __future__ import annotations

import json
from pathlib import Path

import pytest

from base.files import sha256_file
from checkpoint.format import Damaged
from checkpoint.inspect import describe
from support.portable_state import make_state, save


def test_a_checkpoint_tells_what_it_holds(checkpoints: Path) -> None:
    folder = save(checkpoints, make_state(), world_size=3)
    told = describe(folder)
    assert json.loads(json.dumps(told)) == told
    assert (told["step"], told["tokens"], told["run_name"]) == (100, 102400, "demo")
    assert told["manifest_sha256"] == sha256_file(folder / "manifest.json")
    assert told["topology"] == {"world_size": 3, "zero_stage": 2, "engine": "deepspeed"}
    assert told["parameters"] == {"tensors": 5, "trained": 27, "frozen": 17}
    assert [(group["names"], group["parameters"], group["step"]) for group in told["groups"]] == [
        (1, 5, 100),
        (2, 22, 100),
    ]
    assert told["groups"][0]["hyperparameters"]["betas"] == [0.9, 0.95]
    assert told["bytes_by_kind"] == {
        "buffer": 56,
        "exp_avg": 108,
        "exp_avg_sq": 108,
        "frozen": 34,
        "master": 108,
    }
    assert told["bytes"] == sum(path.stat().st_size for path in folder.glob("state-*"))


def test_ties_and_the_loss_scaler_are_told(checkpoints: Path) -> None:
    scaler = {"cur_scale": 65536.0, "cur_iter": 7, "last_overflow_iter": -1, "cur_hysteresis": 2}
    told = describe(save(checkpoints, make_state(), tied={"head": "wte.weight"}, loss_scaler=scaler))
    assert told["tied"] == {"head": "wte.weight"}
    assert told["loss_scaler"] == scaler


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"manifest.json: cannot be read \(No such file"):
        describe(tmp_path)
