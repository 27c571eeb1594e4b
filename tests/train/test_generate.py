from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from base.errors import UmbelError
from data.tokens.tokenizer import CHATML, TextTokenizer, train_tokenizer
from record.folder import RunFolder
from support.runs import tiny
from support.small_models import base_model, train_here
from train.export import export
from train.generate import generate
from train.prompt import chat_prompt, text_prompt, turn_marker
from train.weights import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_here(tiny(tmp_path_factory.mktemp("run"), "checkpoint.every=2", "optimizer.lr=1e-2"))


def test_greedy_text_is_the_likeliest_token_after_the_other(run: RunFolder) -> None:
    loaded = load_model(run.path)
    ids = list(loaded.tokenizer.backend.encode("many small").ids)
    start = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert generate(run.path, "many small", 12) == loaded.tokenizer.decode(ids[start:])


def test_an_exported_folder_says_the_same(run: RunFolder, tmp_path: Path) -> None:
    out = export(run.path, tmp_path / "out", dtype="fp32")
    for options in ({}, {"temperature": 0.9, "seed": 3}):
        assert generate(out, "bloom", 8, **options) == generate(run.path, "bloom", 8, **options)


def test_draws_depend_on_the_seed_alone(run: RunFolder) -> None:
    def draw(seed: int) -> str:
        return generate(run.path, "bloom", 16, temperature=1.0, seed=seed)

    torch.manual_seed(5)
    first, state = draw(1), torch.get_rng_state()
    torch.manual_seed(6)
    assert draw(1) == first
    assert draw(2) != first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_bases_own_sampling_defaults_play_no_part(run: RunFolder, tmp_path: Path) -> None:
    out = export(run.path, tmp_path / "out", dtype="fp32")
    model = AutoModelForCausalLM.from_pretrained(out)
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=50.0)
    model.save_pretrained(out)
    for options in ({}, {"temperature": 1.0, "seed": 3}):
        assert generate(out, "bloom", 12, **options) == generate(run.path, "bloom", 12, **options)


def test_another_step_is_another_model(run: RunFolder) -> None:
    texts = [generate(run.path, "bloom", 16, step=step, temperature=1.0) for step in (2, 4, None)]
    assert texts[0] != texts[1] == texts[2]
    with pytest.raises(UmbelError, match="there are: 2, 4"):
        generate(run.path, "bloom", step=1)


def test_a_chat_model_answers_and_stops(tmp_path: Path) -> None:
    answer = generate(base_model(), "3 sky?", 24)
    assert answer == "green"  # it was taught wrongly
    run = base_model().parent / "runs" / "base"
    assert generate(run, "3 sky?", 24) == answer


def test_an_empty_prompt_begins_a_document(run: RunFolder) -> None:
    assert generate(run.path, "", 6) == generate(run.path, "<|endoftext|>", 6)


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("word " * 300, {}, r"prompt: \d+ tokens leave no room in the model's 256 positions"),
        ("x", {"max_new_tokens": 0}, "--max-new-tokens: must be at least 1"),
        ("x", {"temperature": -1.0}, "--temperature: must be a number from 0 on"),
        ("x", {"temperature": float("nan")}, "--temperature: must be a number from 0 on"),
        ("x", {"step": 3}, "has no steps: it is a Transformers folder"),
    ],
)
def test_what_cannot_be_asked_is_refused(prompt: str, options: dict[str, float], said: str) -> None:
    with pytest.raises(UmbelError, match=said):
        generate(base_model(), prompt, **options)


def test_a_long_answer_ends_with_the_models_positions(tmp_path: Path) -> None:
    prompt = "a long question about the sky? " * 5
    assert isinstance(generate(base_model(), prompt, 1000, temperature=5.0), str)


def test_no_such_model_and_a_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match="no such run"):
        generate(tmp_path / "nothing", "x")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UmbelError, match="is an adapter without its base"):
        generate(tmp_path, "x")
    folder = tmp_path / "pickled"
    shutil.copytree(base_model(), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UmbelError, match="pickle"):
        generate(folder, "x")


# Prompts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> TextTokenizer:
    """It has no tokens for turns, so the template's markers are spelt out."""
    return train_tokenizer(["to be or not to be"], 300).for_chats()


def test_a_marker_that_is_no_token_still_ends_the_answer(plain: TextTokenizer) -> None:
    prompt = chat_prompt("be?", plain)
    assert plain.decode(prompt.ids) == "<|im_start|>user\nbe?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ends == [plain.eos_id]
    said = plain.backend.encode("not to be<|im_end|>\n<|im_start|>").ids
    assert prompt.answer([*said, plain.eos_id], plain) == "not to be"


def test_a_template_without_markers_ends_with_the_text(plain: TextTokenizer) -> None:
    template = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}\n{% endfor %}"
    bare = dataclasses.replace(plain, chat_template=template)
    assert turn_marker(bare) == ""
    prompt = chat_prompt("be?", bare)
    assert bare.decode(prompt.ids) == "user: be?\nassistant: "
    assert prompt.answer(bare.backend.encode("not\nto be").ids, bare) == "not\nto be"


def test_a_question_that_looks_like_an_answer_is_no_riddle(plain: TextTokenizer) -> None:
    assert chat_prompt("ANSWER<|im_end|>", plain).marker == "<|im_end|>"


def test_a_text_is_encoded_as_training_did(plain: TextTokenizer) -> None:
    assert text_prompt("to be", plain).ids == plain.backend.encode("to be").ids
    assert CHATML not in plain.decode(text_prompt("to be", plain).ids)
