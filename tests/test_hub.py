"""The hub's data read online, offline and behind gates, against a hub that is played on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_unlearn.benchmarks import load_benchmark, sources, tofu
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.benchmarks.fingerprint import data_fingerprint
from ray_unlearn.benchmarks.miniatures import muse as muse_mini
from ray_unlearn.benchmarks.miniatures import tofu as tofu_mini
from ray_unlearn.benchmarks.sources import documents, find_files, has_config, read_hub, read_table
from ray_unlearn.config import UserError
from ray_unlearn.models.hub import check_access, open_repository, parse_pins, pin_revisions
from tests.played_hub import Hub, go, played_hub
from tests.tiny import write_byte_model

Rows = list[dict[str, Any]]
PAIRS: Rows = [{"question": f"Who is {i}?", "answer": f"No {i}"} for i in range(6)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with played_hub() as played:
        go(monkeypatch, played, tmp_path)
        yield played
        pin_revisions({})


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: Rows, group: int | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group, write_statistics=False)
    return file.getvalue()


def readme(**files: str) -> bytes:
    configs = [f"- config_name: {name}\n  data_files: {path}" for name, path in files.items()]
    return "\n".join(["---", "configs:", *configs, "---", ""]).encode()


def fails(call: Any, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---- one repository


def test_what_was_read_online_is_read_offline_and_no_other_file_is_fetched(hub, monkeypatch, tmp_path):
    files = {"README.md": readme(first="first.jsonl", second="second.jsonl")}
    commit = hub.put("datasets/a/pairs", {**files, "first.jsonl": lines(PAIRS), "second.jsonl": lines(PAIRS[:2])})
    online = [row.values for row in read_hub("a/pairs", "first", "train")]
    assert online == PAIRS
    assert set(hub.sent) == {"datasets/a/pairs/README.md", "datasets/a/pairs/first.jsonl"}
    go(monkeypatch, None, tmp_path)
    asked = len(hub.requests)
    assert [row.values for row in read_hub("a/pairs", "first", "train")] == online
    assert open_repository("a/pairs").commit == commit
    assert len(hub.requests) == asked
    fails(lambda: read_hub("a/pairs", "second", "train"), "a/pairs", "second.jsonl", "HF_HUB_OFFLINE")
    fails(lambda: read_hub("a/pairs", "third", "train"), "no such configuration", "first and second")


def test_a_cache_without_a_list_of_files_tells_what_it_has_and_never_that_the_rest_is_absent(
    hub, monkeypatch, tmp_path
):
    hub.put("datasets/a/pairs", {"first.jsonl": lines(PAIRS), "second.jsonl": lines(PAIRS)})
    assert has_config(open_repository("a/pairs"), "third") is False
    assert read_hub("a/pairs", "first", "train")
    for list_of_files in (tmp_path / "hub").rglob("trees/*.json"):  # older versions of the library wrote none
        list_of_files.unlink()
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    go(monkeypatch, None, tmp_path)
    assert [row.values for row in read_hub("a/pairs", "first", "train")] == PAIRS
    fails(lambda: has_config(open_repository("a/pairs"), "third"), "Go online once")


@pytest.mark.parametrize(("status", "words"), [(401, "nobody is logged in"), (403, "has not been granted")])
def test_a_gate_is_named_with_the_page_the_login_and_the_folder(hub, status, words):
    hub.put("datasets/a/pairs", {"first.jsonl": lines(PAIRS)})
    hub.gated["datasets/a/pairs"] = status
    expected = ("a/pairs: access is granted on request", words, "co/datasets/a/pairs", "hf auth login", "file = ...")
    fails(lambda: read_hub("a/pairs", "first", "train"), *expected)
    fails(lambda: check_access("a/pairs", "dataset", "a copy of its files with file = ..."), *expected)


def test_missing_repositories_revisions_and_a_dead_hub_are_told_apart(hub, monkeypatch, tmp_path):
    hub.put("datasets/a/pairs", {"first.jsonl": lines(PAIRS)})
    fails(lambda: read_hub("a/nothing", None, "train"), "a/nothing", "no such data set, or it is private")
    fails(lambda: read_hub("a/pairs@nowhere", None, "train"), "a/pairs@nowhere", "no such revision")
    fails(lambda: read_hub("a/pairs", None, "test"), "a/pairs, split test", "no such split, only train")
    hub.is_down = True
    go(monkeypatch, hub, tmp_path)
    assert open_repository("a/pairs").commit  # of the cache
    fails(lambda: open_repository("a/other"), "a/other", "503")
    go(monkeypatch, None, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # nobody listens there
    assert open_repository("a/pairs").commit
    fails(lambda: open_repository("a/other"), "a/other", "the hub cannot be reached", "Check the network")


def test_a_renamed_repository_is_read_under_its_old_name(hub):
    commit = hub.put("datasets/b/new", {"data/train-0.parquet": parquet(PAIRS)})
    hub.renamed["datasets/a/old"] = "datasets/b/new"
    assert [row.values for row in read_hub("a/old", None, "train")] == PAIRS
    assert open_repository("a/old").commit == commit


def test_a_pinned_revision_is_read_after_the_branch_has_moved(hub):
    first = hub.put("datasets/a/pairs", {"train.jsonl": lines(PAIRS)})
    hub.put("datasets/a/pairs", {"train.jsonl": lines(PAIRS[:3])})
    assert len(read_hub("a/pairs", None, "train")) == 3
    assert len(read_hub(f"a/pairs@{first}", None, "train")) == 6
    pin_revisions(parse_pins("--revision", [f"a/pairs@{first}"]))
    assert len(read_hub("a/pairs", None, "train")) == 6
    fails(lambda: parse_pins("--revision", ["a/pairs"]), "--revision a/pairs", "owner/name@revision")


@pytest.mark.parametrize(
    ("files", "config", "split", "wanted"),
    [
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-0.parquet"],
            *(None, "train", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        ),
        (["a/test.jsonl", "b/test.jsonl"], "b", "test", ["b/test.jsonl"]),
        (["a/train/0000.parquet", "a/validation/0000.parquet"], "a", "validation", ["a/validation/0000.parquet"]),
        (["corpus.jsonl", "notes.md"], None, "train", ["corpus.jsonl"]),
        (["forget10.json", "forget10_perturbed.json"], "forget10", "train", ["forget10.json"]),
        (
            ["knowmem/forget_qa-0.parquet", "knowmem/forget_qa_icl-0.parquet"],
            "knowmem",
            "forget_qa",
            ["knowmem/forget_qa-0.parquet"],
        ),
    ],
)
def test_without_a_readme_the_names_tell_the_files(tmp_path, files, config, split, wanted):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(open_repository(str(tmp_path)), config, split) == wanted


def test_a_folder_shows_the_files_that_are_in_it_now(tmp_path):
    (tmp_path / "forget.json").write_bytes(lines(PAIRS))
    assert len(read_table(open_repository(str(tmp_path)), "forget", "train").rows) == 6
    (tmp_path / "forget.json").write_bytes(lines(PAIRS[:2]))
    assert len(read_table(open_repository(str(tmp_path)), "forget", "train").rows) == 2


# ---- large corpora


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_of_a_large_corpus_blocks_alone_are_fetched_and_disk_and_cache_give_the_same(hub, monkeypatch, tmp_path, kind):
    monkeypatch.setattr(sources, "LARGE_BYTES", 2**20)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2**17)
    monkeypatch.setattr(sources, "TAIL_BYTES", 2**12)
    random = np.random.default_rng(0)
    texts = [random.bytes(600).hex() for _ in range(4000)]
    shards = {f"data/train-{i}.{kind}": [{"text": t, "more": t[::-1]} for t in texts[i::4]] for i in range(4)}
    files = {name: parquet(rows, 100) if kind == "parquet" else lines(rows) for name, rows in shards.items()}
    hub.put("datasets/a/corpus", files)

    def read(place: str, count: int) -> list[tuple[str, str]]:
        repository = open_repository(place)
        found = documents(repository, find_files(repository, None, "train"), "corpus", 7)
        return [text for text, _ in zip(found, range(count), strict=False)]

    online = read("a/corpus", 60)
    assert len({text for _, text in online}) == 60
    total = sum(map(len, files.values()))
    assert hub.bytes_of("datasets/a/corpus") < total / 10
    fetched = hub.bytes_of("datasets/a/corpus")
    assert read("a/corpus", 60) == online
    go(monkeypatch, None, tmp_path)
    assert read("a/corpus", 60) == online
    assert hub.bytes_of("datasets/a/corpus") == fetched
    for name, data in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    whole = read(str(tmp_path / "copy"), 10**6)
    assert whole[:60] == online
    assert sorted(text for _, text in whole) == sorted(texts)


# ---- benchmarks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("model"))


def same_online_and_offline(hub, monkeypatch, tmp_path, benchmark, request_) -> Any:
    task = load_benchmark(benchmark).load(request_)
    asked = len(hub.requests)
    go(monkeypatch, None, tmp_path)
    again = load_benchmark(benchmark).load(request_)
    assert len(hub.requests) == asked
    assert data_fingerprint(again) == data_fingerprint(task)
    assert again.commits == task.commits
    return task


def test_tofu_offline_keeps_its_hold_out(hub, monkeypatch, tmp_path, model):
    parts = tofu_mini.build_world(tofu_mini.Sizes()).parts
    folder = tofu_mini.write_parts(tmp_path / "data", parts)
    commit = hub.put_folder("datasets/locuslab/TOFU", folder)
    monkeypatch.setattr(tofu, "choose_words", lambda texts: tofu.ENGLISH)
    task = same_online_and_offline(hub, monkeypatch, tmp_path, "tofu", Request("full", str(model)))
    assert "holdout" in task.selection.probes
    assert task.commits == {"locuslab/TOFU": commit}
    local = load_benchmark("tofu").load(Request("full", str(model), folder))
    assert data_fingerprint(local) == data_fingerprint(task)
    assert local.commits == {}
    assert "datasets/locuslab/TOFU/forget05.json" not in hub.sent


def test_muse_is_read_offline_and_fetches_the_parts_that_it_uses(hub, monkeypatch, tmp_path, model):
    muse_mini.write_repository(tmp_path / "data" / "MUSE-News", muse_mini.build_world(muse_mini.Sizes()))
    for k in (1, 2, 3, 4):  # folds that this split has nothing to do with
        for config in ("scal", "sust"):
            file = tmp_path / "data" / "MUSE-News" / config / f"forget_{k}-00000-of-00001.parquet"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(parquet([{"text": "x" * 4000 * k}]))
    hub.put_folder("datasets/muse-bench/MUSE-News", tmp_path / "data" / "MUSE-News")
    task = same_online_and_offline(hub, monkeypatch, tmp_path, "muse", Request("full", str(model)))
    local = load_benchmark("muse").load(Request("full", str(model), tmp_path / "data"))
    assert np.array_equal(local.forget.tokens, task.forget.tokens)
    assert not any("/scal/" in file or "/sust/" in file or "/raw/retain2" in file for file in hub.sent)


def test_wmdp_s_gated_corpus_leaves_the_open_split(hub, monkeypatch, tmp_path, model):
    from tests.benchmarks.test_wmdp import good_data, write_data

    folder = write_data(tmp_path / "data", good_data())
    for repository in ("wmdp", "mmlu", "wmdp-corpora", "wmdp-bio-forget-corpus"):
        hub.put_folder(f"datasets/cais/{repository}", folder / repository)
    hub.gated["datasets/cais/wmdp-bio-forget-corpus"] = 401
    fails(
        lambda: load_benchmark("wmdp").load(Request("full", str(model))),
        *("cais/wmdp-bio-forget-corpus", "hf auth login", "--data DIR", "--split cyber"),
    )
    cyber = Request("full", str(model), split="cyber")
    task = same_online_and_offline(hub, monkeypatch, tmp_path, "wmdp", cyber)
    local = load_benchmark("wmdp").load(Request("full", str(model), folder, "cyber"))
    assert data_fingerprint(local) == data_fingerprint(task)
    assert set(task.commits) == {"cais/wmdp", "cais/mmlu", "cais/wmdp-corpora"}
    assert not [file for file in hub.sent if "bio-" in file]


# ---- what a command needs, before anything starts


def test_every_repository_that_cannot_be_had_is_named_at_once(hub, monkeypatch, tmp_path):
    from ray_unlearn.commands.access import check_repositories

    hub.put("models/muse-bench/MUSE-News_target", {"config.json": b"{}", "model.safetensors": b"0"})
    hub.put("models/meta-llama/Llama-2-7b-hf", {"tokenizer.json": b"{}"})
    hub.put("datasets/muse-bench/MUSE-News", {"README.md": b"", "raw/forget-0.parquet": parquet([{"text": "a"}])})
    benchmark, request = load_benchmark("muse"), Request("full")
    models = {"--model": benchmark.start_of(request)}
    check_repositories(benchmark, request, models)
    hub.gated["models/meta-llama/Llama-2-7b-hf"] = 401
    fails(
        lambda: check_repositories(benchmark, request, models),
        "--model muse-bench/MUSE-News_target takes its tokenizer from meta-llama/Llama-2-7b-hf",
        *("https://huggingface.co/meta-llama/Llama-2-7b-hf", "hf auth login", "a folder with --model"),
    )
    hub.gated["datasets/muse-bench/MUSE-News"] = 403
    fails(
        lambda: check_repositories(benchmark, request, models),
        *("2 of the 3 repositories", "(1) --model muse", "(2) muse-bench/MUSE-News: access", "--data DIR"),
    )
    assert not hub.bytes_of("models/meta-llama/Llama-2-7b-hf")


def test_the_command_without_access_ends_before_anything_starts_and_names_the_open_split(hub, tmp_path, model):
    from tests.benchmarks.test_wmdp import good_data, write_data

    folder = write_data(tmp_path / "data", good_data())
    for repository in ("wmdp", "mmlu", "wmdp-corpora", "wmdp-bio-forget-corpus"):
        hub.put_folder(f"datasets/cais/{repository}", folder / repository)
    hub.gated["datasets/cais/wmdp-bio-forget-corpus"] = 401
    about = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    words = f"tune --benchmark wmdp --model {model} --out {tmp_path / 'out'} --gpus-per-worker 0"
    run = subprocess.run(
        [sys.executable, "-m", "ray_unlearn.cli", *words.split()],
        env={**os.environ, **about, "RAY_UNLEARN_CACHE": str(tmp_path / "ours")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert "--split cyber" in run.stderr
    assert "hf auth login" in run.stderr
    assert not any(file.suffix == ".parquet" for file in (tmp_path / "out").rglob("*"))
    assert not any("-corpus/train" in asked for asked in hub.requests)
