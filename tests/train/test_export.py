from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import train.export as exporting
from base.errors import UmbelError
from checkpoint.reader import StateReader
from configs.compose import compose
from record.folder import RunFolder
from support.portable_state import make_state, save
from support.runs import tiny
from support.small_models import LLAMA, base_model, chats, finetune, logits, train_here
from train.export import export
from train.weights import fill, load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A BLOOM with checkpoints of steps 2 and 4."""
    overrides = ("checkpoint.every=2", "evaluation.every=2", "data.held_out=0.1")
    return train_here(tiny(tmp_path_factory.mktemp("bloom"), *overrides))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Adapters on a small Llama, moved far enough from zero to be seen."""
    return train_here(finetune(tmp_path_factory.mktemp("lora"), "finetune_lora"))


def loaded(out: Path, **options: object) -> torch.nn.Module:
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, **options)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model


def test_fp32_is_the_trained_model_bit_for_bit(run: RunFolder, tmp_path: Path) -> None:
    model = loaded(export(run.path, tmp_path / "out", dtype="fp32"))
    assert torch.equal(logits(model), logits(load_model(run.path).model))
    assert model.config.use_cache


def test_bf16_is_the_trained_model_rounded(run: RunFolder, tmp_path: Path) -> None:
    model, whole = loaded(export(run.path, tmp_path / "out")), load_model(run.path).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for (name, mine), (_, theirs) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(mine, theirs.bfloat16()), name
    torch.testing.assert_close(logits(model), logits(whole), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("shape", [[*LLAMA], ["model=gpt2_124m", *(x for x in LLAMA if "llama" not in x)]])
def test_other_architectures_come_back_too(shape: list[str], tmp_path: Path) -> None:
    if "gpt2" in shape[0]:
        shape = [x for x in shape if not x.startswith("model.config") or "vocab_size" in x]
        sizes = ("n_embd=32", "n_layer=2", "n_head=2", "n_positions=128")
        shape += [f"model.config.{size}" for size in sizes]
    places = (f'run.dir="{tmp_path / "runs"}"', f'data.path="{chats(tmp_path / "c.jsonl")}"')
    folder = train_here(compose([*shape, *places, "data.packing=none", "data.sequence_length=64"]))
    model = loaded(export(folder.path, tmp_path / "out", dtype="fp32"))
    assert torch.equal(logits(model), logits(load_model(folder.path).model))


def test_a_large_model_is_written_in_shards(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "SHARD_SIZE", "40KB")
    out = export(run.path, tmp_path / "out", dtype="fp32")
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    assert (out / "model.safetensors.index.json").is_file()
    assert torch.equal(logits(loaded(out)), logits(load_model(run.path).model))


def test_any_step_that_is_kept_can_be_exported(run: RunFolder, tmp_path: Path) -> None:
    early = loaded(export(run.path, tmp_path / "early", step=2, dtype="fp32"))
    assert torch.equal(logits(early), logits(load_model(run.path, 2).model))
    assert not torch.equal(logits(early), logits(load_model(run.path).model))
    with pytest.raises(UmbelError, match=r"has no checkpoint of step 3; there are: 2, 4"):
        export(run.path, tmp_path / "none", step=3)
    assert not (tmp_path / "none").exists()


def test_the_tokenizer_is_the_runs_own_copy(run: RunFolder, tmp_path: Path) -> None:
    out = export(run.path, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    mine = load_model(run.path).tokenizer
    text = "many stalks springing, \tfrom one p🌼int"
    assert tokenizer(text)["input_ids"] == mine.backend.encode(text).ids
    assert tokenizer.eos_token_id == mine.eos_id
    kept = [path.name for path in out.iterdir() if path.suffix == ".json"]
    assert "tokenizer_config.json" in kept


def test_generation_ends_where_the_runs_documents_do(run: RunFolder, tmp_path: Path) -> None:
    """BLOOM's own default, 2, is another token in a vocabulary trained here."""
    out = export(run.path, tmp_path / "out")
    end = load_model(run.path).tokenizer.eos_id
    assert GenerationConfig.from_pretrained(out).eos_token_id == [end]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == end


def test_a_chat_model_also_ends_with_its_turn(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    ends = GenerationConfig.from_pretrained(base_model()).eos_token_id
    assert sorted(ends) == sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")])


def test_how_the_base_ends_and_samples_is_kept(tmp_path: Path) -> None:
    base = Path(shutil.copytree(base_model(), tmp_path / "base"))
    GenerationConfig(eos_token_id=[0, 7], do_sample=True, top_p=0.5).save_pretrained(base)
    folder = train_here(finetune(tmp_path, "finetune", "schedule.steps=1", base=base))
    kept = GenerationConfig.from_pretrained(export(folder.path, tmp_path / "out"))
    assert (kept.eos_token_id, kept.do_sample, kept.top_p) == ([0, 3, 7], True, 0.5)


def test_a_base_whose_sampling_contradicts_itself_can_be_exported(tmp_path: Path) -> None:
    """Some published ones name a temperature and do not sample; Transformers refuses to save that."""
    base = Path(shutil.copytree(base_model(), tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": 7}))
    folder = train_here(finetune(tmp_path, "finetune", "schedule.steps=1", base=base))
    kept = GenerationConfig.from_pretrained(export(folder.path, tmp_path / "out"))
    assert (kept.eos_token_id, kept.temperature) == ([0, 3, 7], None)


def test_buffers_come_from_the_checkpoint(tmp_path: Path) -> None:
    state = make_state()
    with StateReader(save(tmp_path, state)) as reader:
        model = torch.nn.Module()
        model.rotary = torch.nn.Module()
        model.rotary.register_buffer("inv_freq", torch.zeros(3, dtype=torch.float64))
        model.register_buffer("position_ids", torch.zeros(1, 4, dtype=torch.int64))
        model.register_buffer("mask", torch.ones(2), persistent=False)
        fill(model, reader)
    assert torch.equal(model.rotary.inv_freq, torch.from_numpy(state.buffers["rotary.inv_freq"]))
    assert model.position_ids.tolist() == [[0, 1, 2, 3]]
    assert model.mask.tolist() == [1, 1]


def test_adapters_merged_and_alone_compute_what_the_run_does(adapted: RunFolder, tmp_path: Path) -> None:
    wanted = logits(load_model(adapted.path).model)
    plain = AutoModelForCausalLM.from_pretrained(base_model())
    assert not torch.allclose(logits(plain), wanted, atol=1e-3)
    merged = loaded(export(adapted.path, tmp_path / "merged", dtype="fp32"))
    assert type(merged) is type(plain)
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=0)
    out = export(adapted.path, tmp_path / "adapter", merge=False, dtype="fp32")
    assert sorted(path.name for path in out.glob("*.safetensors")) == ["adapter_model.safetensors"]
    torch.testing.assert_close(logits(PeftModel.from_pretrained(plain, out)), wanted, atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_an_adapter_is_not_asked_of_a_run_without(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match="trained every weight"):
        export(run.path, tmp_path / "out", merge=False)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_overwritten(run: RunFolder, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for out in (mine, mine / "thesis.tex"):
        with pytest.raises(UmbelError, match="does not exist yet"):
            export(run.path, out)
    assert (mine / "thesis.tex").read_text() == "years of work"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (export(run.path, empty) / "config.json").is_file()


def test_a_full_disk_leaves_nothing_behind(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "model_card", full)
    with pytest.raises(UmbelError, match="No space left"):
        export(run.path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_swept_away(run: RunFolder, tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    (left / "stray.bin").write_text("half")
    out = export(run.path, tmp_path / "out", dtype="fp32")
    assert not left.exists()
    assert not (out / "stray.bin").exists()


def test_the_card_says_what_it_is_and_nothing_of_this_machine(
    run: RunFolder, adapted: RunFolder, tmp_path: Path
) -> None:
    card = (export(run.path, tmp_path / "out") / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "unknown"
    assert header["library_name"] == "transformers"
    for fact in (
        load_model(run.path).run_id,
        "| step | 4 of 4 |",
        f"| tokens learned from | {load_model(run.path).position.tokens} |",
        "| data | 1 |",
    ):
        assert fact in card
    assert "held-out loss | data " in card
    other = (export(adapted.path, tmp_path / "adapter", merge=False) / "README.md").read_text()
    assert yaml.safe_load(other.split("---")[1])["library_name"] == "peft"
    assert "PeftModel" in other
    assert str(base_model().parent) not in card + other


def test_a_run_without_a_whole_checkpoint_is_refused(run: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    for file in copy.glob("checkpoints/step-00000004/state-*"):
        file.write_bytes(file.read_bytes()[:-1])
    assert load_model(copy).position.step == 2
    with pytest.raises(UmbelError, match="step-00000004"):
        load_model(copy, 4)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UmbelError, match="has no whole checkpoint"):
        export(copy, tmp_path / "out")
