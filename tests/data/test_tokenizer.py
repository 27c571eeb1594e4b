from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from data.tokens.tokenizer import FILE, load_tokenizer, train_tokenizer

TEXTS = [f"def f{number}(x):\n    return x + {number}\n" for number in range(200)]
TRAINED = train_tokenizer(TEXTS, 400)


def test_special_tokens_have_fixed_ids() -> None:
    chats = train_tokenizer(TEXTS, 400, chats=True)
    assert (TRAINED.eos_id, TRAINED.pad_id, TRAINED.vocab_size) == (0, 1, 400)
    assert chats.backend.token_to_id("<|im_start|>") == 2
    assert chats.backend.token_to_id("<|im_end|>") == 3


@given(st.text())
def test_every_text_can_be_written(text: str) -> None:
    if "<|" not in text:
        assert TRAINED.decode(TRAINED.backend.encode(text).ids) == text


def test_training_is_deterministic_across_processes(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    code = (
        "import json; from data.tokens.tokenizer import train_tokenizer\n"
        f"print(train_tokenizer(json.load(open({str(tmp_path / 'texts.json')!r})), 400).hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert hashes == {TRAINED.hash}


def test_saved_folder_is_the_same_tokenizer_here_and_in_transformers(tmp_path: Path) -> None:
    tokenizer = TRAINED.for_chats()
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.hash == tokenizer.hash
    assert again.chat_template == tokenizer.chat_template

    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "def f7(x):  # ü\n\treturn x"
    assert theirs(text)["input_ids"] == tokenizer.backend.encode(text).ids
    assert (theirs.eos_token_id, theirs.pad_token_id) == (0, 1)
    assert theirs.decode(theirs(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert theirs.apply_chat_template(chat, tokenize=False).endswith("<|im_start|>assistant\nho<|im_end|>\n")


def test_a_bare_tokenizer_json_loads(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    assert load_tokenizer(tmp_path / FILE).backend.encode("x").ids == TRAINED.backend.encode("x").ids
    assert load_tokenizer(tmp_path / FILE).hash == TRAINED.hash


def test_what_cannot_be_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match="org/name: no such tokenizer"):
        load_tokenizer("org/name")
    with pytest.raises(UmbelError, match=r"no tokenizer\.json there"):
        load_tokenizer(tmp_path)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(UmbelError, match="is no tokenizer"):
        load_tokenizer(tmp_path)
    nameless = json.loads(TRAINED.files[FILE].replace("<|endoftext|>", "<|stop|>"))
    (tmp_path / FILE).write_text(json.dumps(nameless))
    with pytest.raises(UmbelError, match="no end-of-text token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|stop|>"}}))
    assert load_tokenizer(tmp_path).eos_id == 0
    with pytest.raises(UmbelError, match="must be at least 258"):
        train_tokenizer(TEXTS, 100)
