"""MUSE on data laid out as the hub's: prompts, chunks and halves as they must be, and bad data named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_unlearn.benchmarks import Profile, Request, Split, Task, load_benchmark, muse, muse_mini
from ray_unlearn.config import UserError
from ray_unlearn.metrics import Scores, TokenScores
from ray_unlearn.metrics.membership import auc, min_k_score
from ray_unlearn.metrics.rouge import rouge_l_f1
from ray_unlearn.objective import Judge

Rows = list[dict[str, Any]]
Data = dict[str, dict[str, Rows]]
CONTEXT = 160


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's untrained model: the byte-level tokenizer reads any text."""
    folder = tmp_path_factory.mktemp("model")
    sizes = muse_mini.Sizes(forget=4, retain1=4, retain2=4, holdout=4, width=8, heads=2, layers=1, context=CONTEXT)
    muse_mini.write_untrained(folder, muse_mini.build_world(sizes), sizes)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def texts(what: str, count: int) -> Rows:
    return [{"text": f"The {what} number {i} tells of the mill, the mayor and the ferry."} for i in range(count)]


def questions(what: str, count: int) -> Rows:
    return [{"question": f"What is {what} {i}?", "answer": f"mill {i}"} for i in range(count)]


def good_data() -> Data:
    """Config -> split -> rows."""
    return {
        "raw": {name: texts(name, 5) for name in ("forget", "retain1", "retain2", "holdout")},
        "verbmem": {"forget": [{"prompt": f"The forget number {i} tells", "gt": "of the mill."} for i in range(7)]},
        "knowmem": {
            f"{side}_qa{icl}": questions(f"{side}{icl}", 2 if icl else 5)
            for side in ("forget", "retain")
            for icl in ("", "_icl")
        },
        "privleak": {name: texts(f"secret {name}", 6) for name in ("forget", "retain", "holdout")},
        "sust": {f"forget_{k}": texts(f"fold {k}", 4) for k in (1, 2, 3, 4)},
        "scal": {f"forget_{k}": texts("fold", 4 * k) for k in (1, 2, 3, 4)},
    }


def write_data(folder: Path, data: Data, repository: str = "MUSE-News") -> Path:
    """As the hub's repository is: a README that names each config's files."""
    lines = ["---", "configs:"]
    for config, splits in data.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = folder / repository / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / repository / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Callable[..., Task]:
    def call(data: Data, split: str | None = None, repository: str = "MUSE-News", **more: Any) -> Task:
        folder = write_data(tmp_path / "data", data, repository)
        return load_benchmark("muse").load(Request("full", model=str(model), data=folder, split=split, **more))

    return call


def decode(model: Path, tokens: Any) -> str:
    from ray_unlearn.model import load_tokenizer

    return load_tokenizer(str(model)).decode(tokens)


def test_questions_come_after_muse_s_examples_and_the_answer_alone_is_scored(
    load: Callable[..., Task], model: Path
) -> None:
    task = load(good_data())
    tokens, start = task.selection.probes["forget_qa"].sequences[1]
    shots = "".join(f"Question: What is forget_icl {i}?\nAnswer: mill {i}\n\n" for i in range(2))
    prompt = f"<bos>{shots}Question: What is forget 2?\nAnswer: "
    assert decode(model, tokens[:start]) == prompt
    assert decode(model, tokens[start:]) == "mill 2"
    prompts = task.selection.generations["forget_qa"]
    assert decode(model, prompts.prompts[1]) == prompt
    assert (prompts.references[1], prompts.max_new_tokens) == ("mill 2", 32)


def test_a_verbatim_prompt_goes_on_with_at_most_128_tokens_of_its_text(
    load: Callable[..., Task], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load(good_data())
    tokens, start = task.report.probes["forget_text"].sequences[0]
    assert decode(model, tokens[:start]).strip() == "<bos>The forget number 1 tells"
    assert decode(model, tokens[start:]) == "of the mill."
    assert task.report.generations["forget_text"].references[0] == "of the mill."
    monkeypatch.setattr(muse, "VERBATIM_TOKENS", 3)
    data = {**good_data(), "verbmem": {"forget": [{"prompt": "So", "gt": "it is. " * 60}] * 2}}
    for file in (Path(task.model).parent,):
        assert file.is_dir()
    short = muse._Reader("here", *_tokenizer(model)).verbatim([("row", data["verbmem"]["forget"][0])])[0]
    assert len(short.tokens) - short.start == 3


def _tokenizer(model: Path) -> tuple[Any, int]:
    from ray_unlearn.model import load_tokenizer

    return load_tokenizer(str(model)), CONTEXT


@pytest.mark.parametrize("keeps_bos", [True, False])
def test_chunks_hold_every_token_of_the_texts_and_nothing_twice(model: Path, keeps_bos: bool) -> None:
    tokenizer, context = _tokenizer(model)
    if not keeps_bos:
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    parts = ["The mill burns. " * 40, "The ferry waits. " * 40]
    chunks = muse._Reader("here", tokenizer, context).chunks(parts)
    assert chunks.lengths.max() == context
    learnt = [token for tokens, start in chunks for token in tokens[start:]]
    whole = tokenizer("\n\n".join(parts), add_special_tokens=False)["input_ids"]
    assert learnt == (whole if keeps_bos else whole[1:])
    assert {int(tokens[0]) for tokens, _ in chunks} == {tokenizer.bos_token_id} or not keeps_bos


def test_selection_and_report_share_no_row_and_none_is_lost(load: Callable[..., Task]) -> None:
    task = load(good_data())
    halves = {**task.selection.probes, **task.selection.final_probes}
    for name, probe in halves.items():
        other = {**task.report.probes, **task.report.final_probes}[name]
        rows = [{t.tobytes() for t, _ in p.sequences} for p in (probe, other)]
        assert not rows[0] & rows[1], name
        assert len(rows[0]) + len(rows[1]) == {"qa": 5}.get(name.split("_")[1], 7 if name == "forget_text" else 6)


def test_a_fold_of_sustainability_is_asked_about_itself_and_one_of_scalability_as_the_first(
    load: Callable[..., Task], model: Path
) -> None:
    sustained = load(good_data(), "news-sust-3")
    assert "fold 3 number 0" in decode(model, sustained.forget.tokens)
    for name in ("forget_text", "holdout_text"):
        assert len(sustained.selection.probes[name].sequences) >= 2
    assert "fold 3 number 0" in decode(model, sustained.selection.probes["forget_text"].sequences[0][0])
    assert "forget_qa" not in sustained.selection.probes
    scaled = load(good_data(), "news-scal-4")
    assert scaled.split == "news-scal-4"
    assert "fold number 15" in decode(model, scaled.forget.tokens)
    assert "forget_qa" in scaled.selection.probes


def test_books_are_read_from_their_own_repository(load: Callable[..., Task]) -> None:
    assert load(good_data(), "books", "MUSE-Books").split == "books"


def test_prepare_s_target_knows_both_retain_sets_and_unlearning_one(load: Callable[..., Task], model: Path) -> None:
    task = load(good_data())
    base = muse.build_task(Request("full", model=str(model), data=Path(task.model).parent / "x", split=None)._replace()) \
        if False else None
    assert base is None


def drop(rows: Rows, column: str) -> None:
    for row in rows:
        row[f"old_{column}"] = row.pop(column)
