"""MUSE on data laid out as the hub's: prompts, chunks and halves as they must be, and bad data named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_unlearn.benchmarks import load_benchmark, muse
from ray_unlearn.benchmarks.contract import Request, Split, Task
from ray_unlearn.benchmarks.miniatures import muse as muse_mini
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import UserError
from ray_unlearn.metrics import Scores, TokenScores
from ray_unlearn.metrics.membership import auc, min_k_score
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.metrics.rouge import rouge_l_f1
from tests.played_hub import go

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
    go(monkeypatch, None, tmp_path / "cache")


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
    """As the hub's repository is: a folder for each config."""
    for config, splits in data.items():
        for split, rows in splits.items():
            file = folder / repository / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Callable[..., Task]:
    def call(data: Data, split: str | None = None, repository: str = "MUSE-News") -> Task:
        folder = write_data(tmp_path / "data", data, repository)
        return load_benchmark("muse").load(Request("full", model=str(model), data=folder, split=split))

    return call


def decode(model: Path, tokens: Any) -> str:
    from ray_unlearn.models.loading import load_tokenizer

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
    tokens, start = task.report.probes["forget"].sequences[0]
    assert decode(model, tokens[:start]).strip() == "<bos>The forget number 1 tells"
    assert decode(model, tokens[start:]) == "of the mill."
    assert task.report.generations["forget"].references[0] == "of the mill."
    monkeypatch.setattr(muse, "VERBATIM_TOKENS", 3)
    row = {"prompt": "So", "gt": "it is. " * 60}
    (short,) = muse._Reader("here", *reading(model)).verbatim([("row", row)])
    assert len(short.tokens) - short.start == 3


def reading(model: Path) -> tuple[Any, int]:
    from ray_unlearn.models.loading import load_tokenizer

    return load_tokenizer(str(model)), CONTEXT


@pytest.mark.parametrize("keeps_bos", [True, False])
def test_chunks_hold_every_token_of_the_texts_and_nothing_twice(model: Path, keeps_bos: bool) -> None:
    tokenizer, context = reading(model)
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
        assert len(rows[0]) + len(rows[1]) == 5 if name.endswith("_qa") else 7 if name == "forget" else 6


def test_the_whole_holds_both_halves(model: Path, tmp_path: Path) -> None:
    request = Request("full", model=str(model), data=write_data(tmp_path, good_data()), whole=True)
    task = muse.load(request)
    assert task.whole is not None
    for name, probe in task.whole.probes.items():
        halves = [half.probes[name].sequences for half in (task.selection, task.report)]
        assert len(probe.sequences) == sum(map(len, halves))


def test_a_fold_of_sustainability_is_asked_about_itself_and_one_of_scalability_as_the_first(
    load: Callable[..., Task], model: Path
) -> None:
    sustained = load(good_data(), "news-sust-3")
    assert "fold 3 number 0" in decode(model, sustained.forget.tokens)
    for name in ("forget", "holdout"):
        assert len(sustained.selection.probes[name].sequences) >= 2
    assert "fold 3 number 0" in decode(model, sustained.selection.probes["forget"].sequences[0][0])
    assert "forget_qa" not in sustained.selection.probes
    scaled = load(good_data(), "news-scal-4")
    assert scaled.split == "news-scal-4"
    assert "fold number 15" in decode(model, scaled.forget.tokens)
    assert "forget_qa" in scaled.selection.probes


def test_books_are_read_from_their_own_repository(load: Callable[..., Task]) -> None:
    assert load(good_data(), "books", "MUSE-Books").split == "books"


def test_prepare_s_target_knows_both_retain_sets_and_unlearning_trains_on_one(model: Path, tmp_path: Path) -> None:
    request = Request("full", model=str(model), data=write_data(tmp_path, good_data()))
    base, task = muse.build_task(request), muse.load(request)
    assert "The retain2 number" in decode(model, base.retain.tokens)
    assert "The retain2 number" not in decode(model, task.retain.tokens)
    assert np.array_equal(base.forget.tokens, task.forget.tokens)


def test_a_folder_that_is_itself_the_copy_is_read(model: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path, good_data()) / "MUSE-News"
    task = muse.load(Request("full", model=str(model), data=folder))
    assert len(task.forget)
    assert task.cut == {
        side: len(rows) for side, rows in (("forget", task.forget), ("retain", task.retain)) if len(rows) > 1
    }


def drop(rows: Rows, column: str) -> None:
    for row in rows:
        row[f"old_{column}"] = row.pop(column)


BAD: list[tuple[str, Callable[[Data], Any], list[str]]] = [
    ("no text column", lambda d: drop(d["raw"]["forget"], "text"), ["raw/forget", "no column 'text'"]),
    (
        "no answer column",
        lambda d: drop(d["knowmem"]["retain_qa"], "answer"),
        ["knowmem/retain_qa has no column 'answer'"],
    ),
    ("empty set", lambda d: d["privleak"]["holdout"].clear(), ["privleak/holdout"]),
    ("empty text", lambda d: d["raw"]["retain1"][3].update(text="  "), ["raw/retain1, row 3", "'text'"]),
    ("null text", lambda d: d["privleak"]["forget"][4].update(text=None), ["privleak/forget, row 4"]),
    ("numbers", lambda d: [r.update(gt=7) for r in d["verbmem"]["forget"]], ["verbmem/forget, row 0", "'gt'"]),
    (
        "long question",
        lambda d: d["knowmem"]["forget_qa"][3].update(question="why " * 200),
        ["forget_qa, row 3", "160"],
    ),
    ("long prompt", lambda d: d["verbmem"]["forget"][6].update(prompt="so " * 200), ["verbmem/forget, row 6", "160"]),
    ("long text", lambda d: d["privleak"]["holdout"][5].update(text="so " * 300), ["holdout, row 5", "160"]),
    ("one row", lambda d: d["verbmem"]["forget"].__delitem__(slice(1, None)), ["verbmem/forget", "one row"]),
    ("no such config", lambda d: d.pop("privleak"), ["privleak/forget", "parquet"]),
    ("no such split", lambda d: d["knowmem"].pop("forget_qa_icl"), ["forget_qa_icl", "parquet"]),
]


@pytest.mark.parametrize(("spoil", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_data_is_named_in_one_line(
    load: Callable[..., Task], spoil: Callable[[Data], Any], words: list[str]
) -> None:
    data = good_data()
    spoil(data)
    with pytest.raises(UserError) as error:
        load(data)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_answer_without_tokens_is_named() -> None:
    def tokenizer(text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        """A word-level tokenizer that drops what it does not know."""
        return {"input_ids": [len(word) for word in text.split() if word.isascii()]}

    reader = muse._Reader("here", tokenizer, 100)
    with pytest.raises(UserError, match="row 7: the answer has no tokens"):
        reader.questions([("row 7", {"question": "Who?", "answer": "äh"})], [])
    with pytest.raises(UserError, match="row 8: 'gt' has no tokens"):
        reader.verbatim([("row 8", {"prompt": "He is", "gt": "äh"})])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("full", model="x", split="news-sust-5"), "news, books, news-scal-1"),
        (Request("mini", split="news"), "--scale full"),
        (Request("mini", data=Path("x")), "--scale full"),
    ],
)
def test_requests_that_cannot_be_met_say_what_can(request_: Request, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_benchmark("muse").load(request_)


def test_data_that_are_not_there_are_asked_for(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder MUSE-Books"):
        muse.load(Request("full", model=str(model), data=tmp_path, split="books"))
    with pytest.raises(UserError, match="muse-bench/MUSE-News is not in the hub's cache"):
        muse.load(Request("full", model=str(model)))


# ---- measures


def test_rouge_l_f1_is_the_reference_implementation_s_without_stemming() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [("the mills burn at night", "the mill burns all night"), ("", "a ferry"), ("the same", "the same")]
    expected = [RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs]
    assert rouge_l_f1(*(list(side) for side in zip(*pairs, strict=True))).tolist() == expected
    assert expected[0] < 1.0 == expected[2]


def test_a_few_shot_answer_ends_where_the_next_question_would_start() -> None:
    assert muse.cut_answer("mill 3\n\nQuestion: What?") == "mill 3"
    assert muse.cut_answer("mill 3\nQuestion: What?") == "mill 3"
    assert muse.cut_answer("mill 3 Question: What?") == "mill 3 "


def test_min_k_is_the_mean_of_the_lowest_share_and_auc_counts_ties_half() -> None:
    logprob = np.array([-1.0, -9.0, -2.0, -3.0, -4.0, -5.0])
    tokens = TokenScores(np.array([0, 5, 6]), logprob, logprob, logprob)
    assert min_k_score(tokens, 0.4).tolist() == [-6.5, -5.0]
    assert auc(np.array([3.0, 1.0]), np.array([1.0, 0.0])) == 0.875


def attacked(mean: float, seed: int) -> Scores:
    """Texts of 10 tokens with log-probs around `mean`."""
    logprob = np.random.default_rng(seed).normal(mean, 1.0, 200)
    tokens = TokenScores(np.arange(0, 201, 10), logprob, logprob, logprob)
    return Scores(np.ones(20), np.ones(20), np.ones(20), np.zeros(20), tokens=tokens)


def scored(forget: float, hold_out: float) -> dict[str, Scores]:
    answers = Scores(np.ones(4), np.full(4, 2.0), np.ones(4), np.ones(4))
    names = ("forget", "holdout", "retain", "forget_qa", "retain_qa")
    return {
        **dict.fromkeys(names, answers),
        "forget_members": attacked(forget, 0),
        "holdout_members": attacked(hold_out, 1),
    }


def test_privacy_leakage_is_0_as_the_retrained_model_minus_100_where_all_is_known_and_above_0_beyond() -> None:
    retrained = muse.measure(scored(-3.0, -3.0), {}, Split({}))
    assert 0.2 < retrained.metrics["min_k_auc"] < 0.8
    assert "retrained" in retrained.absent["privleak"]
    own = muse.compare_with_itself(retrained)
    assert own.metrics["privleak"] == 0.0
    assert not own.absent
    split = Split({}, retrained=own)
    leakage = [muse.measure(scored(f, -3.0), {}, split).metrics["privleak"] for f in (-3.0, -0.0, -8.0)]
    assert leakage[0] == 0.0
    assert leakage[1] == pytest.approx(-100.0)
    assert leakage[2] > 50.0


def test_the_published_auc_is_used_for_muse_s_own_target_and_nothing_else(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("full", model=str(model), data=write_data(tmp_path, good_data()))
    assert not muse.load(request).report.published
    real = muse.load_tokenizer, muse.load_config
    for name, function in zip(("load_tokenizer", "load_config"), real, strict=True):
        monkeypatch.setattr(muse, name, lambda name, function=function: function(str(model)))
    for split, published in {"news": {"min_k_auc": 0.4772}, "news-sust-2": {}}.items():
        task = muse.load(Request("full", data=request.data, split=split))
        assert (task.model, task.report.published) == ("muse-bench/MUSE-News_target", published)
    profile = muse.measure(scored(-3.0, -3.0), {}, Split({}, published={"min_k_auc": 0.4772}))
    area = profile.metrics["min_k_auc"]
    assert profile.metrics["privleak"] == pytest.approx(100 * (area - 0.4772) / 0.4772)


def test_without_a_retrained_model_the_goal_is_what_hold_out_text_has_at_the_start() -> None:
    start = muse.measure(scored(-1.0, -3.0), {}, Split({})).metrics
    start |= {"holdout_exact_memorisation": 0.3, "holdout_extraction_strength": 0.1}
    judge = Judge.build(muse.BENCHMARK, start, None, Ranking(0.95))
    assert [aim.metric for aim in judge.aims] == ["forget_exact_memorisation", "forget_extraction_strength"]
    assert [judge.goal(aim) for aim in judge.aims] == [0.3, 0.1]
    assert judge.verdict(start).forget == 0.0
    as_unread = {**start, "forget_exact_memorisation": 0.3, "forget_extraction_strength": 0.1}
    assert judge.verdict(as_unread).objective == pytest.approx(1.0)
