"""A tokenizer as the data knows it: text to ids and back, its special tokens, its chat template, its hash."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tokenizers

from base.errors import UmbelError
from base.files import sha256_json, write_text

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")
"""What a bare tokenizer.json, which does not say, may call its end-of-text token."""

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of tokenizers that have none: OpenAI's ChatML."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer read from, or to be saved as, a Transformers folder.

    ``files`` are that folder's files by name; ``special`` maps ``eos_token``, ``bos_token``… to their text.
    """

    files: dict[str, str]
    special: dict[str, str]
    chat_template: str | None

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.files[FILE])
        backend.no_padding()
        backend.no_truncation()
        return backend

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def eos_id(self) -> int:
        # Looked up when the tokenizer was read: it is in the vocabulary.
        return cast(int, self.backend.token_to_id(self.special["eos_token"]))

    @cached_property
    def pad_id(self) -> int:
        """The id padding is filled with; the end-of-text id where there is no padding token."""
        found = self.backend.token_to_id(self.special.get("pad_token", ""))
        return self.eos_id if found is None else int(found)

    @cached_property
    def hash(self) -> str:
        """sha256 of everything that decides which ids a text or a chat becomes."""
        return sha256_json([self.files[FILE], self.special, self.chat_template])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def for_chats(self) -> TextTokenizer:
        """This tokenizer with a chat template: its own, or ChatML."""
        if self.chat_template is not None:
            return self
        return TextTokenizer(self.files | {TEMPLATE: CHATML}, self.special, CHATML)

    def save(self, folder: Path) -> None:
        """Write a folder that ``AutoTokenizer.from_pretrained`` loads."""
        # tokenizer.json last: its presence says that the folder is whole.
        for name in sorted(self.files, key=lambda name: name == FILE):
            write_text(folder / name, self.files[name])


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Read a ``tokenizer.json`` or a Transformers folder that holds one.

    Raises:
        UmbelError: nothing there, no fast tokenizer, or no end-of-text token.
    """
    place = Path(path).expanduser()
    folder, file = (place, place / FILE) if place.is_dir() else (place.parent, place)
    if not place.exists():
        fix = "give a tokenizer.json or a local Transformers folder (a hub model is downloaded first)"
        raise UmbelError("no such tokenizer", where=str(path), fix=fix)
    if not file.is_file():
        fix = "for a slow tokenizer, save it once with AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        raise UmbelError(f"no {FILE} there", where=str(place), fix=fix)
    text = file.read_text()
    backend = _parse(text, file)
    bare = not place.is_dir()
    config = {} if bare else _read_json(folder / "special_tokens_map.json") | _read_json(folder / CONFIG)
    special = _special_tokens(config, backend, str(place))
    template = None if bare else _template(folder, config)
    files = {FILE: text, CONFIG: _config_text(special)}
    if not bare:
        names = (CONFIG, "special_tokens_map.json", TEMPLATE)
        files |= {name: (folder / name).read_text() for name in names if (folder / name).is_file()}
    return TextTokenizer(files, special, template)


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, chats: bool = False) -> TextTokenizer:
    """Learn a byte-level BPE (GPT-2's pre-tokenizer; every text can be written). Same texts, same result.

    Ids 0 and 1 are the end-of-text and padding tokens; with ``chats``, 2 and 3 begin and end a turn.

    Raises:
        UmbelError: ``vocab_size`` cannot hold the 256 bytes and the special tokens.
    """
    special = [END_OF_TEXT, PAD, *(CHAT_TOKENS if chats else ())]
    if vocab_size < 256 + len(special):
        what = f"must be at least {256 + len(special)} (256 bytes and {len(special)} special tokens)"
        raise UmbelError(f"{what}, but is {vocab_size}", where="data.tokenizer.vocab_size")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    names = {"eos_token": END_OF_TEXT, "pad_token": PAD}
    return TextTokenizer({FILE: backend.to_str(), CONFIG: _config_text(names)}, names, None)


def _parse(text: str, file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower kind
        raise UmbelError(f"is no tokenizer ({error})", where=str(file)) from error


def _special_tokens(config: dict[str, Any], backend: tokenizers.Tokenizer, where: str) -> dict[str, str]:
    special = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token and backend.token_to_id(token) is not None:
            special[key] = token
    known = [token for token in KNOWN_ENDS if backend.token_to_id(token) is not None]
    if "eos_token" not in special and not known:
        fix = f"name eos_token in a {CONFIG} beside it"
        raise UmbelError("has no end-of-text token", where=where, fix=fix)
    special.setdefault("eos_token", (known or [""])[0])
    if backend.token_to_id(PAD) is not None:
        special.setdefault("pad_token", PAD)
    return special


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text()
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default") or next(iter(named.values()), None)
    return template


def _config_text(special: dict[str, str]) -> str:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    return json.dumps(config, indent=2) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UmbelError(f"is not JSON ({error})", where=str(path)) from error
    return value if isinstance(value, dict) else {}
