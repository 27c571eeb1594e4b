from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base.errors import UmbelError
from configs.schema import Source
from data import build
from data.manifest import NAME, check_unchanged
from data.prepare import prepare
from data.prepared import Prepared, check_vocabulary, open_prepared
from data.tokenizer import train_tokenizer


def texts_of(prepared: Prepared, source: str, split: Any) -> list[str]:
    """The documents that were packed, put together again from the rows."""
    table = prepared.rows(source, split)
    tokens = [table.ids(0)[:1]] + [table.ids(row)[1:] for row in range(len(table))] if len(table) else []
    text = prepared.tokenizer.decode(np.concatenate(tokens).tolist()) if tokens else ""
    return text.split("<|endoftext|>")


def test_rows_hold_the_documents_and_the_splits_are_disjoint(jsonl: Any, documents: Any, config: Any) -> None:
    records = documents("doc", 300)
    prepared = prepare(config(path=str(jsonl("a.jsonl", [*records, *records[:50]]))))
    train, held_out = texts_of(prepared, "data", "train"), texts_of(prepared, "data", "held_out")
    known = {record["text"] for record in records}
    assert set(train[:-1]) | set(held_out[:-1]) <= known
    assert not set(train[:-1]) & set(held_out[:-1])  # doubled documents fall on one side
    assert len(set(train[:-1]) | set(held_out[:-1])) >= 298  # but for the two that lie over the end
    totals = prepared.manifest["sources"]["data"]
    assert totals["train"]["documents"] + totals["held_out"]["documents"] == 350
    for split in ("train", "held_out"):
        used = totals[split]["rows"] * 16 + 1
        assert used + totals[split]["left_out_tokens"] == totals[split]["tokens"]
    assert 10 < totals["held_out"]["documents"] < 70


def test_the_same_data_is_found_again(tmp_path: Path, jsonl: Any, documents: Any, config: Any) -> None:
    data = config(path=str(jsonl("a.jsonl", documents("doc", 90))))
    first = prepare(data)
    stamp = (first.folder / NAME).stat().st_mtime_ns
    again = prepare(data)
    assert (again.folder, (again.folder / NAME).stat().st_mtime_ns) == (first.folder, stamp)
    assert prepare(replace(data, sequence_length=8)).folder != first.folder
    elsewhere = prepare(replace(data, cache_dir=str(tmp_path / "other")))
    assert elsewhere.manifest == first.manifest
    assert not list(first.folder.rglob("progress*"))


def test_shards_change_nothing_but_their_number(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(path=str(jsonl("a.jsonl", documents("doc", 300))))
    whole = prepare(data)
    monkeypatch.setattr(build, "SHARD_BYTES", 2000)
    parts = prepare(replace(data, cache_dir=str(tmp_path / "other")))
    assert len(parts.manifest["sources"]["data"]["train"]["shards"]) > 5
    one, many = whole.rows("data", "train"), parts.rows("data", "train")
    assert len(one) == len(many)
    for row in range(len(one)):
        assert one.ids(row).tolist() == many.ids(row).tolist()
        assert one.doc_lens(row).tolist() == many.doc_lens(row).tolist()
    assert whole.unigram_entropy == parts.unigram_entropy


def test_datasets_reads_the_same_rows(jsonl: Any, documents: Any, config: Any) -> None:
    prepared = prepare(config(path=str(jsonl("a.jsonl", documents("doc", 90)))))
    dataset, table = prepared.dataset("data", "train"), prepared.rows("data", "train")
    assert len(dataset) == len(table)
    assert dataset[3]["input_ids"] == table.ids(3).tolist()
    assert len(dataset[3]["input_ids"]) == 17
    assert sum(dataset[3]["doc_lens"]) == 17


def test_unigram_entropy_is_that_of_the_targets(jsonl: Any, documents: Any, config: Any) -> None:
    prepared = prepare(config(path=str(jsonl("a.jsonl", documents("doc", 90)))))
    table = prepared.rows("data", "train")
    targets = np.concatenate([table.ids(row)[1:] for row in range(len(table))])
    shares = np.unique(targets, return_counts=True)[1] / len(targets)
    assert prepared.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-6)


def test_unpacked_texts_are_counted_where_they_are_cut(jsonl: Any, config: Any) -> None:
    records = [{"text": "word " * 200}, {"text": "short"}, {"text": ""}] * 5
    prepared = prepare(config(path=str(jsonl("a.jsonl", records)), packing=False, held_out=0.0))
    totals = prepared.manifest["sources"]["data"]["train"]
    assert (totals["documents"], totals["rows"], totals["truncated_documents"]) == (10, 10, 5)
    lengths = [len(prepared.rows("data", "train").ids(row)) for row in range(10)]
    assert sum(lengths) + totals["truncated_tokens"] == totals["tokens"]
    assert max(lengths) == 17
    assert prepared.rows("data", "train").ids(1)[-1] == prepared.manifest["eos_id"]


def test_chats_and_a_pretrained_folder(tmp_path: Path, jsonl: Any, config: Any) -> None:
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ho ho"}]
    path = jsonl(
        "a.jsonl", [{"messages": [*chat, {"role": "user", "content": str(n)}, chat[1]]} for n in range(20)]
    )
    train_tokenizer(["hello ho"], 300).save(tmp_path / "model")
    data = config(path=str(path), sequence_length=200, packing=False)
    prepared = prepare(data, pretrained=str(tmp_path / "model"))
    table = prepared.rows("data", "train")
    mask = table.mask(0)
    assert mask is not None
    learned = prepared.tokenizer.decode(table.ids(0)[mask].tolist())
    assert learned == "ho ho<|im_end|>\nho ho<|im_end|>\n<|endoftext|>"
    assert prepared.tokenizer.chat_template is not None
    packed = prepare(replace(data, packing=True, sequence_length=32), pretrained=str(tmp_path / "model"))
    assert packed.rows("data", "train").mask(0) is not None
    trained = prepare(data)
    assert trained.tokenizer.backend.token_to_id("<|im_end|>") == 3
    broken = jsonl("b.jsonl", [{"messages": chat}, {"messages": chat[:1]}])
    with pytest.raises(UmbelError, match=rf"{broken}:2: nothing to learn"):
        prepare(replace(data, path=str(broken)))


def chats_of(words: int, count: int) -> list[dict[str, Any]]:
    """Chats whose questions are of ``words`` words and whose answers are short."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{number} " + "word " * words},
                {"role": "assistant", "content": "ho"},
            ]
        }
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("packing", "said"),
    [
        (False, r"data\.sequence_length=16 cuts 9 of 9 examples \(\d\d+ tokens each on average\) before"),
        (True, r"none of the \d+ rows of data\.sequence_length=16 reaches an answer"),
    ],
)
def test_answers_beyond_the_rows_are_told_as_such(jsonl: Any, config: Any, packing: bool, said: str) -> None:
    # Of several packed chats, or of one that fills its last row, some row would reach an answer.
    path = jsonl("a.jsonl", chats_of(208, 1 if packing else 9))
    data = config(path=str(path), packing=packing, held_out=0.0)
    with pytest.raises(UmbelError, match=f"nothing to learn: {said}") as caught:
        prepare(data)
    assert caught.value.fix == "set a longer data.sequence_length"


def test_packed_rows_without_an_answer_are_left_out_and_counted(jsonl: Any, config: Any) -> None:
    prepared = prepare(config(path=str(jsonl("a.jsonl", chats_of(60, 20))), held_out=0.0))
    table, totals = prepared.rows("data", "train"), prepared.manifest["sources"]["data"]["train"]
    assert totals["rows_without_targets"] > 0
    assert len(table) == totals["rows"] > 0
    for row in range(len(table)):
        mask = table.mask(row)
        assert mask is not None
        assert mask[1:].any()
    cut = totals["rows"] + totals["rows_without_targets"]
    assert totals["tokens"] == 16 * cut + 1 + totals["left_out_tokens"]


def test_too_little_or_no_text_is_refused_and_leaves_nothing(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any
) -> None:
    data = config(path=str(jsonl("a.jsonl", [{"text": "one two"}])), held_out=0.0)
    with pytest.raises(UmbelError, match=r"too little text to train on: \d tokens .* one row needs 17"):
        prepare(data)
    with pytest.raises(UmbelError, match=r"data\.path=.*holds no text"):
        prepare(replace(data, path=str(jsonl("b.jsonl", []))))
    with pytest.raises(UmbelError, match=r"c\.jsonl:901: is not JSON"):
        prepare(replace(data, path=str(jsonl("c.jsonl", [*documents("doc", 900), "{"]))))
    good, short = (Source(path=str(jsonl(f"{n}.jsonl", documents(str(n), n)))) for n in (90, 1))
    with pytest.raises(UmbelError, match=r"data\.sources\.short: too little text"):
        prepare(replace(data, path=None, sources={"good": good, "short": short}, sequence_length=99))
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert not list((tmp_path / "cache").rglob(NAME))


def test_a_changed_file_is_refused_by_name(tmp_path: Path, jsonl: Any, documents: Any, config: Any) -> None:
    jsonl("in/a.jsonl", documents("a", 50))
    path = jsonl("in/sub/b.jsonl", documents("b", 50))
    data = config(path=str(tmp_path / "in"))
    old = prepare(data).manifest
    check_unchanged(old, prepare(data).manifest)
    path.write_text(path.read_text().replace("b 7:", "b 8:"))
    new = prepare(data).manifest
    with pytest.raises(UmbelError, match=r"source data: sub/b\.jsonl: has changed .*sha256"):
        check_unchanged(old, new)
    path.unlink()
    with pytest.raises(UmbelError, match=r"sub/b\.jsonl: is gone"):
        check_unchanged(old, prepare(data).manifest)
    with pytest.raises(UmbelError, match="sequence_length: was 16, now is 8"):
        check_unchanged(new, json.loads(json.dumps(new | {"sequence_length": 8, "fingerprint": "x"})))
    with pytest.raises(UmbelError, match="other rows"):
        check_unchanged(new, new | {"fingerprint": "x"})


def test_a_vocabulary_beyond_the_model_is_refused(mixture: Prepared) -> None:
    check_vocabulary(mixture, mixture.vocab_size)
    with pytest.raises(UmbelError, match="ids up to 299, but the model's vocab_size is 299"):
        check_vocabulary(mixture, 299)


def test_a_damaged_folder_is_refused(tmp_path: Path, jsonl: Any, documents: Any, config: Any) -> None:
    prepared = prepare(config(path=str(jsonl("a.jsonl", documents("doc", 90)))))
    shard = next(prepared.folder.rglob("shard-*.arrow"))
    os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(UmbelError, match=r"shard-00000\.arrow: should have \d+ bytes"):
        open_prepared(prepared.folder)
    shard.unlink()
    with pytest.raises(UmbelError, match=r"shard-00000\.arrow: is missing"):
        open_prepared(prepared.folder)
    with pytest.raises(UmbelError, match="holds no prepared data"):
        open_prepared(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    data = config(path=str(jsonl("a.jsonl", documents("doc", 90))))
    with pytest.raises(UmbelError, match=r"/file.*cannot be written .*data\.cache_dir"):
        prepare(replace(data, cache_dir=str(tmp_path / "file")))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "write_shard", full)
    with pytest.raises(UmbelError, match=r"cannot be written \(No space left on device\); free space"):
        prepare(data)


WORKER = """
import sys
from configs.schema import Data, Source, Tokenizer
from data import build
from data.prepare import prepare
build.SHARD_BYTES = 3000
sources = {name: Source(path=f"{sys.argv[1]}/{name}.jsonl") for name in ("a", "b")}
data = Data(sources=sources, sequence_length=16, held_out=0.1, cache_dir=sys.argv[2],
            tokenizer=Tokenizer(vocab_size=400))
prepare(data, say=lambda line: print(line, flush=True))
"""


def start(tmp_path: Path, cache: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(tmp_path / cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def the_manifest(cache: Path) -> dict[str, Any]:
    (path,) = cache.glob(f"prepared/*/{NAME}")
    manifest: dict[str, Any] = json.loads(path.read_text())
    shards = {
        f"{source}/{split}/{shard['name']}"
        for source, value in manifest["sources"].items()
        for split in ("train", "held_out")
        for shard in value[split]["shards"]
    }
    on_disk = {file.relative_to(path.parent).as_posix() for file in path.parent.rglob("*") if file.is_file()}
    assert shards == {name for name in on_disk if name.endswith(".arrow")}
    assert not [name for name in on_disk if "tmp" in name or "progress" in name]
    return manifest


def kill_after(worker: subprocess.Popen[str], lines: int, delay: float) -> None:
    """SIGKILL a worker ``delay`` seconds after it has said ``lines`` lines."""
    assert worker.stdout is not None
    for _ in range(lines):
        worker.stdout.readline()
    time.sleep(delay)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    worker.stdout.close()


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_manifest(
    tmp_path: Path, jsonl: Any, documents: Any
) -> None:
    for name in ("a", "b"):
        jsonl(f"{name}.jsonl", documents(name, 1500))
    calm = start(tmp_path, "calm")
    calm.communicate(timeout=60)
    draw = random.Random(0)
    for _ in range(10):
        kill_after(start(tmp_path, "killed"), draw.randint(0, 7), draw.uniform(0, 0.01))
    assert not list((tmp_path / "killed").glob(f"prepared/*/{NAME}"))
    (train,) = (tmp_path / "killed").glob("prepared/*/a/train")
    # What a kill inside a write leaves, whatever the moments drawn above.
    (train / ".shard-00099.arrow.1.tmp").write_bytes(b"half")
    (train / "shard-00099.arrow").write_bytes(b"not named by the progress")
    (train.parents[1] / ".manifest.json.1.tmp").write_text("half")
    last = start(tmp_path, "killed")
    said = last.communicate(timeout=60)[0]
    assert (calm.returncode, last.returncode) == (0, 0)
    assert "source a: 49 documents" not in said  # it went on, and did not begin again
    assert the_manifest(tmp_path / "killed") == the_manifest(tmp_path / "calm")


def test_two_processes_at_once_do_the_work_once(tmp_path: Path, jsonl: Any, documents: Any) -> None:
    for name in ("a", "b"):
        jsonl(f"{name}.jsonl", documents(name, 1500))
    workers = [start(tmp_path, "shared") for _ in range(2)]
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    the_manifest(tmp_path / "shared")
    assert sum("training a tokenizer" in lines for lines in said) == 1
    lines = [line for text in said for line in text.splitlines() if line.endswith("tokens")]
    assert len(lines) == len(set(lines))


def test_nothing_in_this_room_imports_torch(tmp_path: Path, jsonl: Any, documents: Any) -> None:
    path = jsonl("a.jsonl", documents("doc", 200))
    code = f"""
import importlib, pkgutil, sys, data
for module in pkgutil.iter_modules(data.__path__):
    importlib.import_module("data." + module.name)
from configs.schema import Data, Schedule, Tokenizer
from data.prepare import prepare
from data.stream import BatchStream
prepared = prepare(Data(path={str(path)!r}, sequence_length=16, cache_dir={str(tmp_path)!r},
                        tokenizer=Tokenizer(vocab_size=300)))
BatchStream(prepared, Schedule(global_batch=4), 1, {{"data": 1.0}}).micro_batches(1, 0, 1, 4)
print([name for name in ("torch", "datasets", "transformers") if name in sys.modules])
prepared.dataset("data", "train")[0]
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("[]\n[]\n", "")


def test_neighbouring_rows_overlap_by_one_token(mixture: Prepared) -> None:
    table = mixture.rows("middle", "train")
    for one, next_one in pairwise(range(len(table))):
        assert table.ids(one)[-1] == table.ids(next_one)[0]


def test_sources_of_a_mixture_keep_their_own_rows(mixture: Prepared) -> None:
    for name in ("small", "middle", "large"):
        texts = texts_of(mixture, name, "train")[:-1]
        assert all(text.startswith(f"{name} ") for text in texts)
        assert Source(path="x").weight == 1.0
