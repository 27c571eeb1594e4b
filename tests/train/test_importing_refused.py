"""What an import refuses, in one line and without a trace; and what its sandbox gives up."""

from __future__ import annotations

import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from base.errors import UmbelError
from checkpoint.folders import steps
from checkpoint.reader import StateReader
from configs.schema import Lora, Model, RunConfig
from record.folder import RunFolder
from support.runs import tiny
from train.importing import sandbox
from train.importing.compare import check_counters, differences
from train.importing.confine import leave_network, write_only_below
from train.importing.make import find, growing, install
from train.importing.match import match
from train.importing.pickles import unpickle
from train.importing.source import Group, Source
from train.importing.stored import Parts, tensors_of
from train.importing.write import check_base
from train.model import build_model, meta_model
from train.parameters import parameter_groups
from train.schedule import learning_rate


class Malice:
    """Runs a command when it is unpickled by a loader that allows it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Transformers folder of the tiny run's model."""
    folder = tmp_path_factory.mktemp("weights")
    config = tiny(folder)
    build_model(config.model, 7).save_pretrained(folder / "model")
    return folder / "model"


def do(config: RunConfig, place: Path, step: int | None = None, tag: str | None = None) -> Path:
    run = RunFolder.of(config)
    with growing(run) as folder:
        found = find(config, place, folder, step=step, tag=tag)
        install(found, config, folder, place)
    (checkpoint,) = steps(run.checkpoints).values()
    return checkpoint


def refused(tmp_path: Path, place: Path, *overrides: str, **more: Any) -> str:
    """The one line with which an import is refused; the folder of runs is as it was."""
    config = tiny(tmp_path, *overrides)
    with pytest.raises(UmbelError) as caught:
        do(config, place, **more)
    assert "\n" not in str(caught.value)
    runs = Path(config.run.dir)
    assert not runs.exists() or list(runs.iterdir()) == []
    return str(caught.value)


def copy(weights: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    to.mkdir(parents=True)
    tensors = load_file(weights / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors")
    return to


def deepspeed_folder(folder: Path, content: Any) -> Path:
    (folder / "global_step1").mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    torch.save(content, folder / "global_step1" / "mp_rank_00_model_states.pt")
    return folder


def test_a_pickle_that_would_run_a_command_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    place = deepspeed_folder(tmp_path / "ds", {"module": {}, "optimizer": Malice(f"touch {trace}")})
    told = refused(tmp_path, place)
    assert "mp_rank_00_model_states.pt: asks for posix.system" in told
    assert not trace.exists()
    torch.load(place / "global_step1" / "mp_rank_00_model_states.pt", weights_only=False)
    assert trace.exists(), "the test shows nothing"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x80\x02garbage", "cannot be read"),
        (b"PK\x03\x04" + bytes(200), "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    place = deepspeed_folder(tmp_path / "ds", {})
    file = place / "global_step1" / "mp_rank_00_model_states.pt"
    file.write_bytes(content)
    assert f"{file}: {told}" in refused(tmp_path, place)


def test_a_pickle_of_a_kilobyte_that_describes_more_than_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb: list[Any] = []
    for _ in range(64):
        bomb = [bomb, bomb]
    monkeypatch.setattr(sandbox, "MAX_VALUES", 1000)
    with pytest.raises(ValueError, match="more than 1000 values"):
        sandbox.Plain().of(bomb)
    place = deepspeed_folder(tmp_path / "ds", {"module": torch.zeros(1).expand(1 << 40)})
    assert "cannot be read" in refused(tmp_path, place)


def test_the_sandbox_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that opens pickles is given a handful of variables, and none of the user's tokens."""
    told = tmp_path / "told"
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nenv > {told}\nexit 7\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    with pytest.raises(UmbelError, match="ended with 7"):
        unpickle([tmp_path / "file.pt"], tmp_path)
    assert "PATH=" in told.read_text()
    assert not [line for line in told.read_text().splitlines() if line.startswith(("HF_", "WANDB_"))]


def test_the_sandbox_reaches_no_network_and_writes_nowhere_else(tmp_path: Path) -> None:
    """Where the system allows; a forked child tries."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    told = in_child(lambda: _tries(inside, outside))
    for confined, does in (("network", "connects"), ("writing", "writes"), ("writing", "starts")):
        assert not (told[confined] and told[does]), told
    assert not told["writing"] or (inside / "file").exists()


def _tries(inside: Path, outside: Path) -> dict[str, bool]:
    import socket
    import subprocess

    told = {"network": leave_network(), "writing": write_only_below(inside)}
    (inside / "file").write_text("")
    for name, attempt in {
        "connects": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "writes": lambda: (outside / "file").write_text(""),
        "starts": lambda: subprocess.run(["true"], check=True),
    }.items():
        try:
            attempt()
            told[name] = True
        except ConnectionRefusedError:
            told[name] = True  # there is an interface to be refused on
        except OSError:
            told[name] = False
    return told


def in_child(work: Callable[[], dict[str, bool]]) -> dict[str, bool]:
    import json

    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as file:
        return dict(json.loads(file.read()))


def test_weights_alone_begin_at_step_0_with_moments_of_zero(tmp_path: Path, weights: Path) -> None:
    config = tiny(tmp_path)
    checkpoint = do(config, weights)
    model = build_model(config.model, 7)
    with StateReader(checkpoint) as reader:
        assert (reader.manifest["step"], reader.manifest["sequences"], reader.manifest["tokens"]) == (0, 0, 0)
        assert [group["step"] for group in reader.manifest["groups"]] == [0, 0]
        assert reader.manifest["tied"] == {"lm_head.weight": "transformer.word_embeddings.weight"}
        for name, parameter in model.named_parameters():
            assert reader.read(name, "master").tobytes() == parameter.detach().numpy().tobytes()
            assert not reader.read(name, "exp_avg_sq").any()


def test_bf16_weights_without_a_head_and_in_shards(tmp_path: Path, weights: Path) -> None:
    config = tiny(tmp_path)
    model = build_model(config.model, 7).to(torch.bfloat16)
    model.transformer.save_pretrained(tmp_path / "bare", max_shard_size="30KB")
    assert len(list((tmp_path / "bare").glob("*.safetensors"))) > 1
    checkpoint = do(config, tmp_path / "bare", step=2)
    with StateReader(checkpoint) as reader:
        assert reader.manifest["step"] == 2
        for name, parameter in model.named_parameters():
            assert reader.read(name, "master").tobytes() == parameter.detach().float().numpy().tobytes()


def test_every_difference_of_the_model_is_told(tmp_path: Path, weights: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.new.weight"] = tensors.pop("transformer.ln_f.weight")
        tensors["transformer.ln_f.bias"] = torch.zeros(5)

    told = refused(tmp_path, copy(weights, tmp_path / "other", change))
    assert "1 missing (transformer.ln_f.weight)" in told
    assert "1 unexpected (transformer.new.weight)" in told
    assert "1 of another shape (transformer.ln_f.bias ([5], here [32]))" in told
    assert "model=" in told


def test_a_head_of_its_own_is_refused_where_the_model_ties_it(tmp_path: Path, weights: Path) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"] + 1

    def repeat(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()

    told = refused(tmp_path, copy(weights, tmp_path / "untied", untie))
    assert "lm_head.weight is a tensor of its own" in told
    assert "tie_word_embeddings=false" in told
    do(tiny(tmp_path), copy(weights, tmp_path / "repeated", repeat))


def test_frozen_there_and_trained_here(tmp_path: Path, weights: Path) -> None:
    source = Source(kind="", files=[], weights=parts_of(weights))
    model = build_model(tiny(tmp_path).model, 7)
    model.transformer.ln_f.bias.requires_grad_(False)
    found = match(source, model, base=False, where="here")
    assert set(found.weights) == set(dict(model.named_parameters()))
    groups = [Group(names=["transformer.ln_f.bias"], step=1, rule={})]
    with pytest.raises(
        UmbelError, match=r"1 trained there, frozen here \(transformer.ln_f.bias\); 28 frozen there"
    ):
        match(
            Source(kind="", files=[], weights=parts_of(weights), groups=groups),
            model,
            base=False,
            where="here",
        )


def test_adapters_of_another_base_are_refused(tmp_path: Path, weights: Path) -> None:
    """Frozen weights of a base are not stored; those that are in the source must be the base's."""
    config = tiny(tmp_path)
    config.model = Model(pretrained=str(weights), precision="fp32", lora=Lora(r=2))
    state = build_model(config.model, 7).state_dict()
    save_file({name: each.clone() for name, each in state.items()}, tmp_path / "own.safetensors")
    frozen = next(name for name in state if name.endswith("query_key_value.base_layer.weight"))
    state[frozen] = state[frozen] + 1
    save_file({name: each.clone() for name, each in state.items()}, tmp_path / "other.safetensors")
    model = meta_model(config.model)
    for name in ("own", "other"):
        parts = {key: Parts.whole(each) for key, each in tensors_of(tmp_path / f"{name}.safetensors").items()}
        source = match(Source(kind="", files=[], weights=parts), model, base=True, where="here")
        if name == "own":
            check_base(source, model, config, "here")
            continue
        with pytest.raises(UmbelError, match=f"was trained on another base: {re.escape(frozen)} differs"):
            check_base(source, model, config, "here")


def test_persistent_buffers_come_along_and_others_stay_away(tmp_path: Path, weights: Path) -> None:
    model = build_model(tiny(tmp_path).model, 7)
    model.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
    save_file(
        {"module.seen": torch.arange(3), "module.table": torch.arange(2)}, tmp_path / "buffers.safetensors"
    )
    buffers = {name: Parts.whole(each) for name, each in tensors_of(tmp_path / "buffers.safetensors").items()}
    source = Source(kind="", files=[], weights=parts_of(weights), buffers=buffers)
    found = match(source, model, base=False, where="here")
    assert {name: parts.read().tolist() for name, parts in found.buffers.items()} == {"seen": [0, 1, 2]}
    with pytest.raises(UmbelError, match=r"1 missing \(seen\)"):
        match(Source(kind="", files=[], weights=parts_of(weights)), model, base=False, where="here")


def parts_of(weights: Path) -> dict[str, Parts]:
    return {name: Parts.whole(each) for name, each in tensors_of(weights / "model.safetensors").items()}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"latest_checkpointed_iteration.txt": b"1"}, "is a Megatron checkpoint"),
        ({".metadata": b"", "__0_0.distcp": b""}, "torch.distributed.checkpoint"),
        ({"pytorch_model_fsdp_0/x": b"", "optimizer_0/x": b""}, "is an FSDP checkpoint"),
        ({"pytorch_model.bin": b"x"}, "holds its weights as a pickle"),
        ({"adapter_model.safetensors": b"x"}, "is an adapter alone"),
        ({"manifest.json": b"{}"}, "is Umbel's own checkpoint"),
        ({"latest": b"../elsewhere"}, "has no tag '../elsewhere'"),
        ({"latest": b"a", "b/mp_rank_00_model_states.pt": b""}, "--tag: there are b"),
        ({"mp_rank_00_model_states.pt": b"", "mp_rank_01_model_states.pt": b""}, "parallelism"),
        ({"zero_pp_rank_1_mp_rank_00_model_states.pt": b""}, "lacks a file of rank 0"),
        ({"model.safetensors": b"x"}, "is not a safetensors file"),
        ({"readme": b""}, "holds no checkpoint that is known"),
        ({}, "holds no checkpoint that is known"),
    ],
)
def test_what_is_no_checkpoint_to_import(tmp_path: Path, files: dict[str, bytes], told: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    assert told in refused(tmp_path, place)


def test_a_run_that_is_there_stays(tmp_path: Path, weights: Path) -> None:
    config = tiny(tmp_path)
    checkpoint = do(config, weights)
    before = (checkpoint / "manifest.json").read_bytes()
    with pytest.raises(UmbelError, match=r"is there already; set run\.name"):
        do(config, weights)
    assert (checkpoint / "manifest.json").read_bytes() == before


def test_what_the_run_will_do_otherwise_is_told(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    model = build_model(config.model, 7)
    decayed, spared = (group["names"] for group in parameter_groups(model, config.optimizer))

    def told(*groups: Group, samples: int | None = None) -> list[str]:
        source = Source(kind="", files=[], weights={}, groups=list(groups), samples=samples)
        return differences(source, config, model, 2)

    lr = learning_rate(config.schedule, config.optimizer.lr, 2)
    same = {"betas": [0.9, 0.95], "eps": 1e-8, "lr": lr}
    alike = [
        Group(names=decayed, step=2, rule={**same, "weight_decay": 0.1}),
        Group(names=spared, step=2, rule={**same, "weight_decay": 0.0}),
    ]
    assert told(*alike, samples=8) == []
    other = {"betas": [0.9, 0.999], "eps": 1e-6, "lr": 1.0, "weight_decay": 0.01}
    notes = told(Group(names=decayed + spared, step=2, rule=other), samples=6)
    assert "was 0.01 and is 0.1 now: see optimizer.weight_decay" in notes[0]
    assert "was 0.01 and is 0 now: see optimizer.decay_embeddings and optimizer.decay_norms" in notes[1]
    assert "betas was [0.9,0.999] and is [0.9,0.95] now: optimizer.betas=[0.9,0.999] keeps it" in notes[2]
    assert "optimizer.eps=1e-06 keeps it" in notes[3]
    assert "the learning rate was 1 and is" in notes[4]
    assert "had seen 6 sequences, by this schedule it would be 8" in notes[5]
    split = [Group(names=decayed[:1], step=2, rule={}), Group(names=decayed[1:], step=3, rule={})]
    with pytest.raises(UmbelError, match="was updated 2 times"):
        check_counters(Source(kind="", files=[], weights={}, groups=split), config, model)


def test_what_a_killed_import_left_is_no_hindrance(tmp_path: Path, weights: Path) -> None:
    config = tiny(tmp_path)
    hidden = Path(config.run.dir) / ".tiny.importing"
    (hidden / "pickles").mkdir(parents=True)
    (hidden / "pickles" / "0.json").write_text("{}")
    (hidden / "run_id").write_text("old")
    checkpoint = do(config, weights)
    assert sorted(path.name for path in Path(config.run.dir).iterdir()) == ["tiny"]
    assert not (checkpoint.parents[1] / "pickles").exists()
    assert (checkpoint.parents[1] / "run_id").read_text() != "old"


def test_a_stream_cannot_begin_in_its_middle(tmp_path: Path, weights: Path) -> None:
    told = refused(tmp_path, weights, "data.mode=streaming", step=2)
    assert "a stream begins at its beginning" in told


def test_a_folder_of_deepspeed_that_says_nothing(tmp_path: Path) -> None:
    place = deepspeed_folder(tmp_path / "ds", {"module": OrderedDict()})
    assert "is no model state of DeepSpeed (no global_steps)" in refused(tmp_path, place)
    facts = {
        "module": {},
        "global_steps": 1,
        "global_samples": 1,
        "dp_world_size": 1,
        "optimizer": {"param_groups": [{}]},
    }
    place = deepspeed_folder(tmp_path / "ds2", facts)
    assert "is not of the form that its trainer writes (KeyError" in refused(tmp_path, place)
