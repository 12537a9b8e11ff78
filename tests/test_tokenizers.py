"""A folder's own tokenizer: its start mark, what it lacks, and copies that give the same tokens byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_unlearn.config import UserError
from ray_unlearn.models import tokenizers
from ray_unlearn.models.loading import load_model, load_stops, load_tokenizer, save_weights
from ray_unlearn.models.older_readers import spell_rope
from ray_unlearn.models.templates import Template
from tests.test_templates import CHATML, MARKS, MISTRAL, ZEPHYR
from tests.tokenizer_kinds import write_byte_level, write_llama_like, write_model

KINDS: dict[str, dict[str, Any]] = {
    "Llama class": {"tokenizer_class": "LlamaTokenizer", "legacy": False},
    "Llama class, legacy": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": ZEPHYR},
    "Mistral": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": MISTRAL},
    "no class": {},
    "file alone": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "start mark off": {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False},
}
TEXTS = ("Where was Mira Tal born?\nOslo", "</s>Oslo</s> baker\n</s>\nOslo", "<s> [INST] Where [/INST]Oslo</s>")


@pytest.mark.parametrize("kind", [*KINDS, "byte level"])
def test_a_written_folder_gives_the_same_tokens_from_the_same_bytes(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "in"
    if kind == "byte level":
        write_byte_level(source, CHATML, MARKS, "<eos>", "<bos>")
    else:
        write_llama_like(source, **KINDS[kind])
    tokenizer = load_tokenizer(str(source))
    files = {file.name: file.read_bytes() for file in tokenizers.list_files(str(source))}
    tokenizers.write_tokenizer(tokenizer, tmp_path / "out", load_tokenizer)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == files
    again = load_tokenizer(str(tmp_path / "out"))
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    pairs = [Template(t).encode_pair("Where was Mira Tal born?", "Oslo", "row") for t in (tokenizer, again)]
    assert pairs[0] == pairs[1]


def test_a_tokenizer_that_reads_otherwise_when_written_is_found_before_weights_are(tmp_path: Path) -> None:
    source, out = write_model(write_llama_like(tmp_path / "in")), tmp_path / "out"
    model, tokenizer = load_model(str(source), "fp32"), load_tokenizer(str(source))
    tokenizer.add_tokens(["Oslo"])  # in memory alone: the folder's files know nothing of it
    with pytest.raises(RuntimeError, match="gives other tokens"):
        save_weights(model, model.state_dict(), tokenizer, out, str(source), "fp32")
    assert not list(out.glob("*.safetensors"))


@pytest.mark.parametrize("wanted", [True, False])
def test_the_folder_s_word_on_the_start_mark_counts_once_in_every_form(tmp_path: Path, wanted: bool) -> None:
    folder = write_llama_like(tmp_path, tokenizer_class="PreTrainedTokenizerFast", add_bos_token=wanted)
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer("Oslo")["input_ids"][0] == tokenizer.bos_token_id) is wanted
    assert Template(tokenizer).encode_pair("Where?", "Oslo", "row")[0].count(tokenizer.bos_token_id) == int(wanted)
    tokenizer.chat_template = MISTRAL
    tokens, _ = Template(tokenizer).encode_pair("Where?", "Oslo", "row")
    assert tokens.count(tokenizer.bos_token_id) == 1  # the template writes it


@pytest.mark.parametrize(
    ("file", "words"),
    [("tekken.json", "mistral-common"), ("tokenizer.model", "sentencepiece"), (None, "holds no tokenizer")],
)
def test_a_folder_without_a_tokenizer_that_can_be_read_says_what_is_missing(
    tmp_path: Path, file: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers.importlib.util, "find_spec", lambda name: None)
    write_model(tmp_path)
    if file:
        (tmp_path / file).write_text("{}")
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_model_s_own_stops_are_read(tmp_path: Path) -> None:
    assert load_stops(str(tmp_path)) == ()
    for ends, stops in ((7, (7,)), ([7, 9], (7, 9)), (None, ())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert load_stops(str(tmp_path)) == stops


def test_one_whole_file_beside_shards_is_refused_and_goes_before_them_in_the_digest(tmp_path: Path) -> None:
    from ray_unlearn.models.fingerprints import weight_files, weights_digest
    from ray_unlearn.models.loading import check_model

    folder = write_model(tmp_path / "one")
    before = weights_digest(folder)
    load_model(str(folder), "fp32").save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert len(weight_files(tmp_path / "cut")) > 1
    for file in (tmp_path / "cut").glob("model*"):
        (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="only the first would be loaded"):
        check_model(str(folder))
    assert weight_files(folder) == [folder / "model.safetensors"]
    assert weights_digest(folder) == before == weights_digest(tmp_path / "cut")


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("values", "added"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"rope_parameters": LLAMA_3},
            {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA_3.items() if k != "rope_theta"}},
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                                 "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        ({"model_type": "gpt2"}, {}),
    ],
)  # fmt: skip
def test_a_configuration_names_its_rotary_base_for_older_readers_too(
    values: dict[str, Any], added: dict[str, Any]
) -> None:
    assert spell_rope(values) == values | added
    assert spell_rope({"text_config": values})["text_config"] == values | added


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 5e5}, LLAMA_3])
def test_an_export_with_both_spellings_scores_as_the_model_did(tmp_path: Path, rope: dict[str, Any]) -> None:
    import torch

    source = write_llama_like(tmp_path / "in")
    write_model(source, rope_parameters=rope, initializer_range=0.25)
    model = load_model(str(source), "fp32").eval()
    save_weights(model, model.state_dict(), load_tokenizer(str(source)), tmp_path / "out", str(source), "fp32")
    rows = torch.arange(40)[None] + 5
    with torch.no_grad():
        logits = [m(input_ids=rows).logits for m in (model, load_model(str(tmp_path / "out"), "fp32").eval())]
    assert torch.equal(logits[0], logits[1])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 5e5
