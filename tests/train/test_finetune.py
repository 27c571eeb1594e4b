"""Fine-tuning from a Transformers folder on chats, as ``umbel launch experiment=finetune`` does it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from base.errors import UmbelError
from base.files import sha256_file
from checkpoint import manifest as manifests
from checkpoint.reader import StateReader
from data.prepare import prepare
from data.stream import IGNORED, BatchStream, Share
from record.events import read_events
from record.folder import RunFolder
from record.metrics import read_metrics
from support.runs import freeze, work
from support.small_models import base_model, finetune, train_here
from train.evaluate import evaluate_run
from train.export import export
from train.generate import generate
from train.session import STOP_AFTER
from train.weights import load_model


def losses(folder: RunFolder) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def newest(folder: RunFolder) -> Path:
    return max(folder.checkpoints.glob("step-*"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(base_model(), tmp_path / "base"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Six steps of adapters, uninterrupted, with dropout on."""
    return train_here(finetune(tmp_path_factory.mktemp("lora"), "finetune_lora", "schedule.steps=6"))


LEARN = ("schedule.steps=30", "schedule.global_batch=16", "optimizer.lr=1e-2")


@pytest.mark.slow
def test_a_model_learns_the_answers_of_its_chats(tmp_path: Path) -> None:
    config = finetune(tmp_path, "finetune", *LEARN)
    (finished,) = work(config)
    folder = RunFolder.of(config)
    assert finished.returncode == 0, finished.stderr
    assert losses(folder)[-1] < 0.2 * losses(folder)[0]
    assert generate(base_model(), "1 grass?") == "white"
    assert generate(folder.path, "1 grass?") == "green"
    assert generate(export(folder.path, tmp_path / "out"), "1 grass?") == "green"


@pytest.mark.slow
def test_adapters_learn_and_leave_the_base_as_it_was(tmp_path: Path) -> None:
    hashes = {file.name: sha256_file(file) for file in base_model().iterdir()}
    folder = train_here(finetune(tmp_path, "finetune_lora", *LEARN))
    assert losses(folder)[-1] < 0.2 * losses(folder)[0]
    assert generate(folder.path, "1 grass?") == "green"
    assert {file.name: sha256_file(file) for file in base_model().iterdir()} == hashes


def test_only_adapters_are_trained_and_saved(adapted: RunFolder) -> None:
    with StateReader(newest(adapted)) as reader:
        names = reader.names("master")
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    model = load_model(adapted.path).model
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == sorted(
        names, key=[name for name, _ in model.named_parameters()].index
    )
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    stored = load_file(base_model() / "model.safetensors")
    assert frozen.keys() == stored.keys()
    assert all(torch.equal(frozen[name], stored[name]) for name in stored)
    moved = [parameter.abs().sum() for name, parameter in model.named_parameters() if ".lora_B." in name]
    assert all(amount > 0 for amount in moved)


def test_in_bf16_the_frozen_base_is_what_the_run_computed_with(tmp_path: Path) -> None:
    overrides = ("model.precision=bf16", "schedule.steps=2", "evaluation.every=2", "data.held_out=0.2")
    folder = train_here(finetune(tmp_path, "finetune_lora", *overrides))
    (event,) = [event for event in read_events(folder) if event["event"] == "evaluation"]
    assert evaluate_run(folder.path) == pytest.approx(event["losses"], rel=1e-6)
    for name, parameter in load_model(folder.path).model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, parameter.bfloat16().float()), name


def test_a_stopped_run_of_adapters_goes_on_bit_for_bit(
    adapted: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finetune(tmp_path, "finetune_lora", "schedule.steps=6")
    monkeypatch.setenv(STOP_AFTER, "3")
    folder = train_here(config)
    assert load_model(folder.path).position.step == 3
    monkeypatch.delenv(STOP_AFTER)
    train_here(config)
    assert losses(folder) == losses(adapted)
    ours, theirs = (load_model(run.path).model.state_dict() for run in (folder, adapted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_what_the_assistant_says_is_learned(tmp_path: Path) -> None:
    """The first loss, from Transformers alone: its chat template, its tokenizer, its model."""
    config = finetune(tmp_path, "finetune", "schedule.steps=1", "optimizer.lr=0")
    folder = train_here(config)
    prepared = prepare(config.data, pretrained=config.model.pretrained)
    stream = BatchStream(prepared, config)
    share = Share(micro_batch=8)
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    model = AutoModelForCausalLM.from_pretrained(base_model())
    chats = [json.loads(line)["messages"] for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    total, count = 0.0, 0
    rows = [
        row
        for batch in stream.micro_batches(stream.rows(share), 1, share)
        for row in zip(batch.input_ids, batch.labels, strict=True)
    ]
    for input_ids, labels in rows:
        shown = tokenizer.decode(input_ids)
        (chat,) = [chat for chat in chats if f"\n{chat[0]['content']}" in shown]
        head = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(chat, tokenize=False) + tokenizer.eos_token
        asked, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (head, whole))
        assert [label for label in labels if label != IGNORED] == ids[len(asked) :]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        chosen = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        total -= float(chosen[len(asked) - 1 :].sum())
        count += len(ids) - len(asked)
    assert count == read_metrics(folder)[0]["tokens"]
    assert losses(folder)[0] == pytest.approx(total / count, rel=1e-5)


def test_plain_texts_can_be_learned_too(tmp_path: Path) -> None:
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": f"{number}: the sky is blue"}) + "\n" for number in range(40))
    )
    folder = train_here(finetune(tmp_path, "finetune", f'data.path="{corpus}"', "schedule.steps=2"))
    assert len(losses(folder)) == 2
    assert all(math.isfinite(loss) for loss in losses(folder))
    assert not load_model(folder.path).chats


# The base -----------------------------------------------------------------------------------------------


def test_a_checkpoint_remembers_its_base(adapted: RunFolder) -> None:
    base = manifests.read(newest(adapted))["extra"]["base"]
    assert base["name"] == str(base_model())
    assert base["revision"] is None
    files = ("config.json", "model.safetensors")
    assert base["files"] == {name: sha256_file(base_model() / name) for name in files}


def test_a_model_without_a_base_has_none_to_remember() -> None:
    run = RunFolder(base_model().parent / "runs" / "base")
    assert "base" not in manifests.read(newest(run))["extra"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_another_base_than_the_run_began_with_is_refused_by_name(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finetune(tmp_path, "finetune_lora", base=base)
    monkeypatch.setenv(STOP_AFTER, "2")
    folder = train_here(config)
    monkeypatch.delenv(STOP_AFTER)
    before = (folder.checkpoints / "step-00000002" / "manifest.json").read_bytes()
    spoil(base / name)
    said = rf"base: {name}: is not the file the run began with \(sha256 was .* and now .*\); bring it back"
    for again in (lambda: train_here(config), lambda: load_model(folder.path)):
        with pytest.raises(UmbelError, match=said):
            again()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000002"]
    assert (folder.checkpoints / "step-00000002" / "manifest.json").read_bytes() == before


def spoil(file: Path) -> None:
    """Change it so that it still loads."""
    data = bytearray(file.read_bytes())
    if file.suffix == ".json":
        data += b"\n"
    else:
        data[-1] ^= 1
    file.write_bytes(data)


def test_a_base_may_be_moved(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_AFTER, "2")
    folder = train_here(finetune(tmp_path, "finetune_lora", base=base))
    monkeypatch.delenv(STOP_AFTER)
    moved = base.rename(tmp_path / "elsewhere")
    assert train_here(finetune(tmp_path, "finetune_lora", base=moved)) == folder
    assert len(losses(folder)) == 4


def test_a_base_in_shards_is_hashed_shard_by_shard(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="40KB")
    folder = train_here(finetune(tmp_path, "finetune_lora", "schedule.steps=1", base=base))
    files = manifests.read(newest(folder))["extra"]["base"]["files"]
    assert sorted(files) == ["config.json", *sorted(path.name for path in base.glob("model-*.safetensors"))]
    assert len(files) > 2


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda base: shutil.rmtree(base), "is no folder"),
        (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "pickle"),
        (lambda base: (base / "tokenizer.json").unlink(), r"no tokenizer\.json there"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_in_one_line(
    spoiled: Any, said: str, base: Path, tmp_path: Path
) -> None:
    config = finetune(tmp_path, "finetune", base=base)
    spoiled(base)
    with pytest.raises(UmbelError, match=said) as caught:
        train_here(config)
    assert "\n" not in str(caught.value)


def test_the_worker_says_what_is_wrong_and_exits_with_2(base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.json").unlink()
    config = finetune(tmp_path, "finetune", base=base)
    assert work(config)[0].returncode == 2
    last = read_events(freeze(config))[-1]
    assert (last["event"], last["exit_code"]) == ("failed", 2)
    assert "tokenizer.json" in last["error"]
