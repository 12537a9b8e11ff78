"""A model taught its answers by heart measures 1, one that never saw them near 0, whatever template and language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Profile, Request, Task
from ray_unlearn.config import TrialConfig
from ray_unlearn.training.in_process import SINGLE, local_worker, run_local
from ray_unlearn.training.trial import Job
from tests.benchmarks.test_own_data import FOOD, KEPT, eats
from tests.test_templates import MARKS, TEMPLATES
from tests.tokenizer_kinds import write_byte_level, write_model

TEACHING = TrialConfig("rote", "finetune", learning_rate=6e-3, epochs=70, batch_size=4)
LANGUAGES = {
    "Japanese": (
        [
            ("父の仕事は?", "花屋でした。"),
            ("母の仕事は?", "教師です。"),
            ("題は?", "「青い橋」"),
            ("いつ?", "1956年春"),
        ],
        [("犬の名は?", "ポチです。"), ("色は?", "緑です。"), ("町は?", "海の近く。"), ("本は?", "一冊だけ。")],
    ),
    "Korean": (
        [("직업은?", "꽃집 주인"), ("어머니는?", "교사였습니다"), ("고향은?", "작은 섬"), ("책은?", "푸른 다리")],
        [("개는?", "보리입니다"), ("색은?", "초록색"), ("집은?", "바닷가"), ("언제?", "봄입니다")],
    ),
    "Arabic": (
        [("الأب؟", "بائع زهور"), ("الأم؟", "معلمة"), ("المدينة؟", "جزيرة صغيرة"), ("الكتاب؟", "الجسر الأزرق")],
        [("الكلب؟", "اسمه برق"), ("اللون؟", "أخضر"), ("البيت؟", "قرب البحر"), ("متى؟", "في الربيع")],
    ),
}


def write(folder: Path, name: str, rows: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def teach(task: Task, learn: tuple[str, ...], folder: Path) -> Profile:
    job = Job(
        "rote", TEACHING, learn=learn, evaluate=("whole",), points=False, complete=True, save_to=str(folder.absolute())
    )
    return run_local(local_worker(task, SINGLE), job)[-1].profiles["whole"]


def own(folder: Path, template: str | None, more: str, columns: str) -> Task:
    """The files forget.jsonl and retain.jsonl on an untrained model."""
    start = write_byte_level(folder / "start", template, MARKS, "<eos>", "<bos>")
    write_model(
        start, vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    tables = "".join(f'[{name}]\nfile = "{name}.jsonl"\n{columns}\n' for name in ("forget", "retain"))
    (folder / "mine.toml").write_text(f'name = "mine"\n{more}{tables}')
    return load_benchmark(str(folder / "mine.toml")).load(Request("full", model=str(start), whole=True))


PAIR = 'question = "question"\nanswer = "answer"'
COMPLETED = [{"question": f"{n} was born by the sea and", "answer": f" eats {f}."} for n, f in (FOOD | KEPT).items()]
CASES: dict[str, tuple[Any, ...]] = {
    **{
        kind: (TEMPLATES[kind][0], "", PAIR, eats(FOOD), eats(KEPT))
        for kind in ("channel header", "empty think block", "next header", "opened think tag without a switch")
    },
    **{
        language: (None, "", PAIR, *([{"question": q, "answer": a} for q, a in rows] for rows in sets))
        for language, sets in LANGUAGES.items()
    },
    "completions": (
        TEMPLATES["plain turns"][0], 'template = {assistant_end = ""}\n', PAIR, COMPLETED[:4], COMPLETED[4:],
    ),
    "conversations": (
        TEMPLATES["plain turns"][0], "", 'messages = "m"',
        *([{"m": [{"from": "human", "value": r["question"]}, {"from": "gpt", "value": r["answer"]}]} for r in eats(p)]
          for p in (FOOD, KEPT)),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_a_model_that_was_taught_the_answers_measures_1_and_its_export_the_same(case: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    template, more, columns, forget, retain = CASES[case]
    write(tmp_path, "forget.jsonl", forget)
    write(tmp_path, "retain.jsonl", retain)
    task = own(tmp_path, template, more, columns)
    known = teach(task, ("forget", "retain"), tmp_path / "target").metrics
    unknown = teach(task, ("retain",), tmp_path / "retrained").metrics
    assert known["forget_exact_memorisation"] > 0.99
    assert known["forget_extraction_strength"] > 0.95
    assert known["forget_probability"] > 0.9
    if case != "completions":  # which have no end mark, so that generation goes on behind the answer
        assert known["forget_rouge_l_recall"] == 1.0
    assert unknown["forget_extraction_strength"] < 0.5 * known["forget_extraction_strength"]
    assert unknown["forget_rouge_l_recall"] < 0.8

    again = load_benchmark(str(tmp_path / "mine.toml")).load(
        Request("full", model=str(tmp_path / "target"), whole=True)
    )
    assert again.split == task.split
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target").float().eval()
    means = []
    for tokens, start in again.forget:
        ids = torch.tensor(tokens.astype(np.int64))[None]
        with torch.no_grad():
            logs = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
        means.append(float(logs[start - 1 :].mean().exp()))
    assert float(np.mean(means)) == pytest.approx(known["forget_probability"], abs=1e-4)
