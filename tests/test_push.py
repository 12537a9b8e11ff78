"""An export goes to the hub whole, private unless asked, and what cannot be sent is said in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_unlearn.commands.export import check_export, digests
from ray_unlearn.commands.options import Export
from ray_unlearn.config import UserError
from ray_unlearn.models.fingerprints import weights_digest
from ray_unlearn.models.hub import check_push, push_folder
from ray_unlearn.models.loading import cut_weights
from tests.played_hub import Hub, go, played_hub
from tests.tiny import write_tiny_model

NAME = "me/forgetful"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Somebody is logged in."""
    with played_hub() as played:
        go(monkeypatch, played, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # what is played has LFS alone
        monkeypatch.setenv("HF_TOKEN", "hf_played")
        yield played


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_tiny_model(tmp_path / "model")
    (made / "README.md").write_text("---\ntags: [unlearning]\n---\n# A model\n")
    return made


def sent(hub: Hub) -> dict[str, bytes]:
    found = hub.find(f"models/{NAME}", "main")
    assert found is not None
    return {name: data for name, data in found[1].items() if name != ".gitattributes"}


def refusal(name: str, is_public: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        check_push(name, is_public)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_file_arrives_in_a_private_repository_and_is_loaded_from_there(hub: Hub, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    check_push(NAME, False)
    assert push_folder(folder, NAME, False) == f"{hub.address}/{NAME}"
    assert sent(hub) == {name: (folder / name).read_bytes() for name in digests(folder)}
    assert hub.private == {f"models/{NAME}"}
    loaded = AutoModelForCausalLM.from_pretrained(NAME)
    assert loaded.num_parameters() == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_a_second_export_takes_the_first_one_s_weights_away(hub: Hub, folder: Path) -> None:
    push_folder(folder, NAME, True)
    assert not hub.private
    cut_weights(folder, "30KB")
    push_folder(folder, NAME, True)
    assert sent(hub) == {name: (folder / name).read_bytes() for name in digests(folder)}
    assert "model.safetensors" not in sent(hub)
    assert "model.safetensors.index.json" in sent(hub)


def test_a_repository_that_others_read_than_was_asked_for_is_refused(hub: Hub, folder: Path) -> None:
    push_folder(folder, NAME, True)
    assert "read by everybody. Give --public" in refusal(NAME)
    check_push(NAME, True)
    push_folder(folder, "me/other", False)
    assert "and private. Leave --public out" in refusal("me/other", True)
    check_push("me/other", False)


def test_what_cannot_be_sent_is_said_before_or_with_the_way_on(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "is no repository's name" in refusal("a b/c")
    hub.refuses_uploads = True
    with pytest.raises(UserError, match=rf"--push {NAME}: .*`hf upload {NAME} {folder}` sends it") as caught:
        push_folder(folder, NAME, False)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "the hub cannot be reached" in refusal(NAME)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "nobody is logged in" in refusal(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set. Unset it, or leave --push out" in refusal(NAME)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"public": True}, "--public: nothing is put on the hub"),
        ({"max_shard_size": "much"}, "--max-shard-size much: is no size"),
        ({"max_shard_size": "0GB"}, "--max-shard-size 0GB: is no size"),
        ({"max_shard_size": "1GB", "adapter": True}, "an adapter is one file"),
        ({"precision": "bf16", "adapter": True}, "as it was trained"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_export(Export(folder="results/x", **options))  # type: ignore[arg-type]


def test_weights_cut_into_files_are_the_same_tensors_and_load(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = weights_digest(folder)
    cut_weights(folder, "30KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    assert not (folder / "model.safetensors").exists()
    assert weights_digest(folder) == before
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    cut_weights(folder, "2GB")
    assert [file.name for file in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert weights_digest(folder) == before
    assert {file.stat().st_mode & 0o777 for file in folder.glob("*")} == {(folder / "README.md").stat().st_mode & 0o777}
