from __future__ import annotations

import errno
import json
import multiprocessing.spawn
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from base.errors import RunFailed, UmbelError
from configs.schema import Filters, Source, Tokenizer
from data.manifest import NAME, check_unchanged
from data.places.retry import ChangedFile
from data.prepare import prepare
from data.prepared import Prepared, check_vocabulary, open_prepared
from data.readers import jsonl as jsonl_reader
from data.rows import build, parts
from data.rows.pack import learned
from data.tokens.tokenizer import train_tokenizer


def texts_of(prepared: Prepared, source: str, split: Any) -> list[str]:
    """The documents that were packed, put together again from the rows."""
    table = prepared.rows(source, split)
    tokens = (
        [table.row(0).ids[:1]] + [table.row(row).ids[1:] for row in range(len(table))] if len(table) else []
    )
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


def test_parts_change_nothing_but_the_shards(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(path=str(jsonl("a.jsonl", documents("doc", 300))))
    whole = prepare(data)
    cut_small(monkeypatch)
    parts = prepare(replace(data, cache_dir=str(tmp_path / "other")))
    assert len(parts.manifest["sources"]["data"]["train"]["shards"]) > 5
    assert rows_of(whole, "data", "train") == rows_of(parts, "data", "train")
    assert rows_of(whole, "data", "held_out") == rows_of(parts, "data", "held_out")
    assert whole.unigram_entropy == parts.unigram_entropy


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of some 40 documents."""
    monkeypatch.setattr(jsonl_reader, "BLOCK_LINES", 40)
    monkeypatch.setattr(parts, "PART_BYTES", 2000)
    monkeypatch.setattr(build, "SHARD_TOKENS", 700)


def rows_of(prepared: Prepared, source: str, split: Any) -> list[list[Any]]:
    """Everything that is in the rows."""
    table = prepared.rows(source, split)
    rows = [table.row(number) for number in range(len(table))]
    return [[None if value is None else value.tolist() for value in row] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["concat", "best_fit", "none"])
def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    cut_small(monkeypatch)
    path = jsonl("in/a.jsonl", documents("doc", 300)).parent
    jsonl("in/b.jsonl", [{"text": "word " * 400}, {"text": ""}] * 30)
    filters = Filters(excludes=r"\b5:")
    data = config(sources={"one": Source(path=str(path), filters=filters)}, packing=packing)
    made = [
        prepare(replace(data, cache_dir=str(tmp_path / str(workers))), workers=workers) for workers in (1, 3)
    ]
    assert made[0].manifest["sources"]["one"]["train"]["rows"] > 100
    assert made[0].fingerprint == made[1].fingerprint
    for split in ("train", "held_out"):
        assert rows_of(made[0], "one", split) == rows_of(made[1], "one", split)


def test_a_workers_fault_is_told_as_it_is(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    train_tokenizer(["some words"], 300).save(tmp_path / "tokenizer")
    path = jsonl("a.jsonl", [*documents("doc", 250), {"txt": "?"}, *documents("more", 250)])
    data = config(path=str(path), tokenizer=Tokenizer(path=str(tmp_path / "tokenizer")))
    with pytest.raises(UmbelError, match=r"a\.jsonl:251: has no column 'text', only: txt; ") as caught:
        prepare(data, workers=2)
    assert (caught.value.where, caught.value.exit_code) == (f"{path}:251", 2)
    assert workers_of(os.getpid()) == []
    assert not list((tmp_path / "cache").rglob("shard*"))


def test_max_bytes_is_exact_whatever_the_parts(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = documents("doc", 300)
    data = config(path=str(jsonl("a.jsonl", records)), max_bytes=5000, held_out=0.0)
    whole = prepare(data)
    text = "".join(record["text"] for record in records)
    assert "".join(texts_of(whole, "data", "train"))[:4000] == text[:4000]
    totals = whole.manifest["sources"]["data"]["train"]
    cut_small(monkeypatch)
    cut = prepare(replace(data, cache_dir=str(tmp_path / "other")))
    assert rows_of(cut, "data", "train") == rows_of(whole, "data", "train")
    assert cut.manifest["sources"]["data"]["train"]["tokens"] == totals["tokens"]
    tokens = whole.tokenizer.backend.encode(text[:5000]).tokens
    assert abs(totals["tokens"] - totals["documents"] - len(tokens)) < totals["documents"]


def test_max_bytes_ends_before_the_first_chat_that_does_not_fit(
    jsonl: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    # The long one ends its part; the short ones behind it would still fit.
    chats = [*chats_of(2, 39), *chats_of(900, 1), *chats_of(2, 40)]
    data = config(path=str(jsonl("a.jsonl", chats)), max_bytes=5000, held_out=0.0, packing="none")
    totals = prepare(replace(data, sequence_length=99)).manifest["sources"]["data"]["train"]
    assert totals["documents"] == 39


def test_rows_know_their_documents(jsonl: Any, documents: Any, config: Any) -> None:
    records = [{"text": ""}, *documents("doc", 200), {"text": " "}, *documents("more", 100)]
    prepared = prepare(config(path=str(jsonl("a.jsonl", records))))
    table = prepared.rows("data", "train")
    for number in range(len(table)):
        row = table.row(number)
        assert len(row.doc_ids) == len(row.doc_lens)
        ends = np.cumsum(row.doc_lens)
        for document, end, length in zip(row.doc_ids, ends, row.doc_lens, strict=True):
            said = prepared.tokenizer.decode(row.ids[end - length : end].tolist())
            assert said.removesuffix("<|endoftext|>") in records[document]["text"]


def test_datasets_reads_the_same_rows(jsonl: Any, documents: Any, config: Any) -> None:
    prepared = prepare(config(path=str(jsonl("a.jsonl", documents("doc", 90)))))
    dataset, table = prepared.dataset("data", "train"), prepared.rows("data", "train")
    assert len(dataset) == len(table)
    assert dataset[3]["input_ids"] == table.row(3).ids.tolist()
    assert len(dataset[3]["input_ids"]) == 17
    assert sum(dataset[3]["doc_lens"]) == 17


def test_unigram_entropy_is_that_of_the_targets(jsonl: Any, documents: Any, config: Any) -> None:
    prepared = prepare(config(path=str(jsonl("a.jsonl", documents("doc", 90)))))
    table = prepared.rows("data", "train")
    rows = [table.row(number) for number in range(len(table))]
    targets = np.concatenate([row.ids[learned(17, row.doc_lens, row.mask)] for row in rows])
    assert 0 < len(targets) < 16 * len(rows)  # the first token of a document is none
    shares = np.unique(targets, return_counts=True)[1] / len(targets)
    assert prepared.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-6)


def test_unpacked_texts_are_counted_where_they_are_cut(jsonl: Any, config: Any) -> None:
    records = [{"text": "word " * 200}, {"text": "short"}, {"text": ""}] * 5
    prepared = prepare(config(path=str(jsonl("a.jsonl", records)), packing="none", held_out=0.0))
    totals = prepared.manifest["sources"]["data"]["train"]
    assert (totals["documents"], totals["rows"], totals["truncated_documents"]) == (10, 10, 5)
    lengths = [len(prepared.rows("data", "train").row(row).ids) for row in range(10)]
    assert sum(lengths) + totals["truncated_tokens"] == totals["tokens"]
    assert max(lengths) == 17
    assert prepared.rows("data", "train").row(1).ids[-1] == prepared.manifest["eos_id"]


def test_chats_and_a_pretrained_folder(tmp_path: Path, jsonl: Any, config: Any) -> None:
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ho ho"}]
    path = jsonl(
        "a.jsonl", [{"messages": [*chat, {"role": "user", "content": str(n)}, chat[1]]} for n in range(20)]
    )
    train_tokenizer(["hello ho"], 300).save(tmp_path / "model")
    data = config(path=str(path), sequence_length=200, packing="none")
    prepared = prepare(data, pretrained=str(tmp_path / "model"))
    table = prepared.rows("data", "train")
    mask = table.row(0).mask
    assert mask is not None
    learned = prepared.tokenizer.decode(table.row(0).ids[mask].tolist())
    assert learned == "ho ho<|im_end|>\nho ho<|im_end|>\n<|endoftext|>"
    assert prepared.tokenizer.chat_template is not None
    packed = prepare(replace(data, packing="concat", sequence_length=32), pretrained=str(tmp_path / "model"))
    assert packed.rows("data", "train").row(0).mask is not None
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
        ("none", r"data\.sequence_length=16 cuts 9 of 9 examples \(\d\d+ tokens each on average\) before"),
        ("concat", r"none of the \d+ rows of data\.sequence_length=16 reaches an answer"),
    ],
)
def test_answers_beyond_the_rows_are_told_as_such(jsonl: Any, config: Any, packing: str, said: str) -> None:
    # Of several packed chats, or of one that fills its last row, some row would reach an answer.
    path = jsonl("a.jsonl", chats_of(208, 1 if packing == "concat" else 9))
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
        mask = table.row(row).mask
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
    assert not [*(tmp_path / "cache").rglob("*.arrow"), *(tmp_path / "cache").rglob("shard*")]
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
    shard = next(prepared.folder.rglob("train/shard-*.parquet"))
    os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(UmbelError, match=r"shard-00000\.parquet: should have \d+ bytes"):
        open_prepared(prepared.folder)
    shard.unlink()
    with pytest.raises(UmbelError, match=r"shard-00000\.parquet: is missing"):
        open_prepared(prepared.folder)
    with pytest.raises(UmbelError, match="holds no prepared data"):
        open_prepared(tmp_path)


def test_what_a_partner_copies_is_enough(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    prepared = prepare(config(path=str(jsonl("a.jsonl", documents("doc", 300)))))
    copy = tmp_path / "copy"
    shutil.copytree(prepared.folder, copy, ignore=shutil.ignore_patterns("*.arrow"))
    told: list[Any] = []
    opened = open_prepared(copy, lambda *facts: told.append(facts))
    count = len(list(copy.rglob("*.parquet")))
    assert told[-1] == ("Arrow copies", count, count, "shards")
    assert rows_of(opened, "data", "train") == rows_of(prepared, "data", "train")
    told.clear()
    open_prepared(copy, lambda *facts: told.append(facts))
    assert told == []


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
from data.rows import parts
from data.places.retry import ChangedFile
from data.prepare import prepare
from data.readers import jsonl
jsonl.BLOCK_LINES = 50
parts.PART_BYTES = 3000
sources = {name: Source(path=f"{sys.argv[1]}/{name}.jsonl") for name in ("a", "b")}
data = Data(sources=sources, sequence_length=16, held_out=0.1, cache_dir=sys.argv[2],
            tokenizer=Tokenizer(vocab_size=400))
if __name__ == "__main__":
    tell = lambda source, done, total, _: print(source, round(100 * done / total), "%", flush=True)
    prepare(data, say=lambda line: print(line, flush=True), report=tell, workers=int(sys.argv[3]))
"""


def start(tmp_path: Path, cache: str, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(tmp_path / cache), str(workers)]
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
    copies = {name.replace(".parquet", ".arrow") for name in shards}
    assert shards | copies == {name for name in on_disk if "shard" in name}
    assert not [name for name in on_disk if "tmp" in name or "progress" in name or "part-" in name]
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
    for kill in range(10):
        kill_after(start(tmp_path, "killed", 1 + kill % 2), draw.randint(0, 7), draw.uniform(0, 0.01))
    assert not list((tmp_path / "killed").glob(f"prepared/*/{NAME}"))
    (train,) = (tmp_path / "killed").glob("prepared/*/a/train")
    # What a kill inside a write leaves, whatever the moments drawn above.
    (train / ".shard-00099.parquet.1.tmp").write_bytes(b"half")
    (train / "shard-00099.parquet").write_bytes(b"not named by the progress")
    (train.parents[1] / ".manifest.json.1.tmp").write_text("half")
    last = start(tmp_path, "killed")
    said = last.communicate(timeout=60)[0]
    assert (calm.returncode, last.returncode) == (0, 0)
    assert not re.search(r"^a 0 %", said, re.MULTILINE)  # it went on, and did not begin again
    assert the_manifest(tmp_path / "killed") == the_manifest(tmp_path / "calm")


@pytest.mark.slow
def test_killed_workers_leave_no_hole_and_a_killed_parent_no_worker(
    tmp_path: Path, jsonl: Any, documents: Any
) -> None:
    for name in ("a", "b"):
        jsonl(f"{name}.jsonl", documents(name, 2000))
    calm = start(tmp_path, "calm")
    calm.communicate(timeout=60)
    parent = start(tmp_path, "killed", 2)
    first = wait_for_workers(parent.pid, set())
    first[0].kill()
    left = wait_for_workers(parent.pid, {worker.pid for worker in first})
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs(left, timeout=10)[1] == []
    last = start(tmp_path, "killed", 2)
    seen: set[int] = set()
    for _ in range(2):
        found = wait_for_workers(last.pid, seen)
        seen |= {worker.pid for worker in found}
        found[0].kill()
    last.communicate()
    assert last.returncode == 0
    assert the_manifest(tmp_path / "killed") == the_manifest(tmp_path / "calm")


def wait_for_workers(parent: int, known: set[int]) -> list[psutil.Process]:
    """Workers that are not known yet, once there are some."""
    for _ in range(2000):
        found = [worker for worker in workers_of(parent) if worker.pid not in known]
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("no workers came")


def workers_of(parent: int) -> list[psutil.Process]:
    """The spawned processes, without Python's own helper."""
    try:
        children = psutil.Process(parent).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def test_two_processes_at_once_do_the_work_once(tmp_path: Path, jsonl: Any, documents: Any) -> None:
    for name in ("a", "b"):
        jsonl(f"{name}.jsonl", documents(name, 1500))
    workers = [start(tmp_path, "shared") for _ in range(2)]
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    the_manifest(tmp_path / "shared")
    assert sum("training a tokenizer" in lines for lines in said) == 1
    assert sum("%" in text for text in said) == 1


def test_nothing_in_this_room_imports_torch(tmp_path: Path, jsonl: Any, documents: Any) -> None:
    path = jsonl("a.jsonl", documents("doc", 200))
    code = f"""
import importlib, pkgutil, sys, data
for module in pkgutil.iter_modules(data.__path__):
    importlib.import_module("data." + module.name)
from configs.schema import Data, Tokenizer
from data.order.global_order import GlobalOrder
from data.places.retry import ChangedFile
from data.prepare import prepare
prepared = prepare(Data(path={str(path)!r}, sequence_length=16, cache_dir={str(tmp_path)!r},
                        tokenizer=Tokenizer(vocab_size=300)))
GlobalOrder([(0, {{"data": 1.0}})], [], 4, 1).numbers(range(3))
print([name for name in ("torch", "datasets", "transformers") if name in sys.modules])
prepared.dataset("data", "train")[0]
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("[]\n[]\n", "")


def test_neighbouring_rows_overlap_by_one_token(mixture: Prepared) -> None:
    table = mixture.rows("middle", "train")
    for one, next_one in pairwise(range(len(table))):
        assert table.row(one).ids[-1] == table.row(next_one).ids[0]


def test_sources_of_a_mixture_keep_their_own_rows(mixture: Prepared) -> None:
    for name in ("small", "middle", "large"):
        texts = texts_of(mixture, name, "train")[:-1]
        assert all(text.startswith(f"{name} ") for text in texts)
        assert Source(path="x").weight == 1.0


def test_a_streamed_run_on_chats_goes_on_with_a_tokenizer_that_knows_none(
    tmp_path: Path, jsonl: Any, config: Any
) -> None:
    chats = [
        [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}] for n in range(40)
    ]
    path = jsonl("chats.jsonl", [{"messages": chat} for chat in chats])
    train_tokenizer(["say 1"], 300).save(tmp_path / "tokenizer")
    tokenizer = Tokenizer(path=str(tmp_path / "tokenizer"))
    data = config(path=str(path), mode="streaming", sequence_length=60, tokenizer=tokenizer)
    first = prepare(data)
    again = prepare(data, began_with=json.loads(json.dumps(first.manifest)))
    assert again.manifest == first.manifest


def test_a_file_that_is_written_to_while_it_is_prepared_is_refused(
    jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl("a.jsonl", documents("doc", 200))
    real = parts.read

    def changing(*arguments: Any) -> Any:
        path.write_text(path.read_text().replace("doc 7:", "doc 8:"))
        return real(*arguments)

    monkeypatch.setattr(parts, "read", changing)
    tokenizer = Tokenizer(path=str(path.parent / "tokenizer"))
    train_tokenizer(["word"], 300).save(path.parent / "tokenizer")
    with pytest.raises(ChangedFile, match=r"a\.jsonl: has changed"):
        prepare(config(path=str(path), tokenizer=tokenizer))


def test_a_worker_that_is_killed_while_it_is_started_is_replaced(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        jsonl(f"{name}.jsonl", documents(name, 200))
    monkeypatch.setattr(parts, "PART_BYTES", 2000)
    submit, calls = ProcessPoolExecutor.submit, []

    def broken_at_first(pool: ProcessPoolExecutor, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise BrokenPipeError
        return submit(pool, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", broken_at_first)
    prepared = prepare(config(path=str(tmp_path / "*.jsonl")), workers=2)
    assert len(calls) > 1
    assert prepared.manifest["sources"]["data"]["train"]["documents"] > 300


def test_a_worker_that_dies_before_it_reads_anything_is_told(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large tokenizer must not fill the pipe of a worker's start: its writer would wait for ever."""
    for name in ("a", "b"):
        jsonl(f"{name}.jsonl", documents(name, 200))
    large = train_tokenizer(["word"], 300)
    large.files["tokenizer_config.json"] = json.dumps({**large.special, "padding": "x" * 1_000_000})
    large.save(tmp_path / "large")
    monkeypatch.setattr(parts, "PART_BYTES", 2000)
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/true")
    data = config(path=str(tmp_path / "*.jsonl"), tokenizer=Tokenizer(path=str(tmp_path / "large")))
    with pytest.raises(RunFailed, match="3 times a worker process was killed"):
        prepare(data, workers=2)
