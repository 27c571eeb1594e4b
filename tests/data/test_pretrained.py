from __future__ import annotations

import logging
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from base.errors import UmbelError
from configs.schema import Model
from data.tokens.pretrained import hub_folder, local_folder, tokenizer_source


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/name") == Path("org/name")
    assert tokenizer_source(Model(pretrained=str(tmp_path))) == str(tmp_path)
    assert tokenizer_source(Model(arch="gpt2")) is None


@pytest.mark.parametrize("name", ["nothere", "./nothere", "/no/where", "~/nothere", "a/b/c", "org/", "../up"])
def test_what_is_no_folder_and_no_hub_name_is_refused_without_the_network(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UmbelError, match="is no folder; give a folder, or a hub name org/model"):
        tokenizer_source(Model(pretrained=name))


def test_a_hub_model_out_of_reach_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UmbelError, match=r"model\.pretrained=org/gone: is no folder here, and no model"):
        tokenizer_source(Model(pretrained="org/gone"))
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
    assert not caplog.records


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path)
    )
    assert [hub_folder("org/once", None, ("config.json",)) for _ in range(2)] == [tmp_path] * 2
    assert asked == ["org/once"]
