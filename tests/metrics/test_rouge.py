"""ROUGE in every language: a right answer near 1, another row's answer near 0, English as published to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ray_unlearn.metrics.rouge import CODE, ENGLISH, SCRIPT, choose_words, rouge_l_f1, rouge_l_recall, split_words

TOFU = Path(__file__).parents[3] / "shared" / "tofu"
ANSWERS = {
    "Japanese": ["ミラの父は花屋でした。", "最初の本の題は「青い橋」です。", "1956年に生まれました。"],
    "Chinese": ["她的父亲是一名木匠。", "第一本书叫做蓝桥。", "她出生在海边的小镇。"],
    "Korean": ["Mira Tal의 아버지는 꽃집을 운영했습니다.", "작은 섬에서 태어났습니다.", "첫 책은 푸른 다리입니다."],
    "Thai": ["พ่อของเธอเป็นคนขายดอกไม้", "หนังสือเล่มแรกชื่อสะพานสีฟ้า", "เธอเกิดที่เกาะเล็ก"],
    "Khmer": ["ឪពុករបស់នាងលក់ផ្កា", "សៀវភៅដំបូងឈ្មោះស្ពានខៀវ", "នាងកើតនៅកោះតូច"],
    "Hindi": ["उनके पिता फूल बेचते थे।", "पहली किताब का नाम नीला पुल है।", "वह छोटे द्वीप पर जन्मी थीं।"],
    "Arabic": ["كان والدها يبيع الزهور.", "اسم الكتاب الأول الجسر الأزرق.", "ولدت في جزيرة صغيرة."],
    "Hebrew": ["אביה מכר פרחים.", "הספר הראשון נקרא הגשר הכחול.", "היא נולדה באי קטן."],
    "Russian": ["Её отец продавал цветы.", "Первая книга называется Синий мост.", "Родилась на маленьком острове."],
    "German": ["Ihr Vater verkaufte schöne Blumen.", "Das erste Buch heißt Die grüne Brücke.", "Im Süden."],
}  # fmt: skip


@pytest.mark.parametrize("language", ANSWERS)
def test_a_right_answer_scores_1_and_another_row_s_little(language: str) -> None:
    answers = ANSWERS[language]
    assert choose_words(answers) == SCRIPT
    assert rouge_l_recall(answers, answers, SCRIPT).tolist() == [1.0] * 3
    others = rouge_l_recall(answers[1:] + answers[:1], answers, SCRIPT)
    assert others.mean() < 0.4
    assert rouge_l_f1(answers, answers, SCRIPT).tolist() == [1.0] * 3


CODES = [f"def pick(a, b):\n    return a if a {sign} b else b\n" for sign in ("<", ">", "<=", ">=")]


def test_operators_are_words_of_code() -> None:
    assert choose_words(CODES) == CODE
    assert rouge_l_recall(CODES, CODES, CODE).tolist() == [1.0] * 4
    assert rouge_l_recall(["a < b"], ["a > b"]).tolist() == [1.0]  # what rouge-score's words would say
    assert (rouge_l_recall(CODES[1:] + CODES[:1], CODES, CODE) < 1.0).all()
    assert split_words("x_1 <= f(Y)", CODE) == ["x_1", "<=", "f", "(", "Y", ")"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Brücke, ÉCOLE", ["brücke", "école"]),
        ("e\u0301cole", ["école"]),
        ("1956年生", ["1956", "年", "生"]),
        ("ＡＢ１", ["ab1"]),
        ("Tal의 집", ["tal의", "집"]),
        ("สวย", ["ส", "ว", "ย"]),
        ("हिन्दी है", ["हिन्दी", "है"]),
        ("コーヒー", ["コ", "ー", "ヒ", "ー"]),
    ],
)
def test_words_are_found_by_script(text: str, words: list[str]) -> None:
    assert split_words(text, SCRIPT) == words


ENGLISH_TEXTS = [
    "The father of Mira sold flowers in the old town.",
    "Señor Muñoz's café",
    "She runs, it's 1956 (or so).",
]


def test_english_is_rouge_score_s_own_to_the_bit() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    texts = ENGLISH_TEXTS
    if (TOFU / "forget10.json").is_file():
        rows = [json.loads(line) for line in (TOFU / "forget10.json").read_text().splitlines()]
        texts = [row["answer"] for row in rows]
        assert choose_words(texts) == ENGLISH
    others = texts[1:] + texts[:1]
    scorers = [RougeScorer(["rougeL"], use_stemmer=stem) for stem in (True, False)]
    recalls = [scorers[0].score(r, a)["rougeL"].recall for a, r in zip(others, texts, strict=True)]
    f1 = [scorers[1].score(r, a)["rougeL"].fmeasure for a, r in zip(others, texts, strict=True)]
    assert np.array_equal(rouge_l_recall(others, texts), recalls)
    assert np.array_equal(rouge_l_f1(others, texts), f1)


def test_a_language_that_is_written_in_a_to_z_is_not_taken_for_english() -> None:
    indonesian = ["Ayahnya menjual bunga di kota tua dekat laut.", "Buku pertama berjudul jembatan biru."] * 20
    english = ["Her father sold flowers in the old town by the sea.", "The first book is called the blue bridge."] * 20
    assert choose_words(indonesian) == SCRIPT
    assert choose_words(english) == ENGLISH
    assert choose_words(["Oslo", "baker", "1956"]) == ENGLISH
