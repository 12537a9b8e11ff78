"""Short texts for people."""

import pytest

from ray_unlearn.wording import aligned, duration, first_line, listing

WRAPPED = """ray::train_fn() (pid=17, ip=10.0.0.1)
  File "/somewhere/serve.py", line 3, in train_fn
ValueError: no such layer: 7
"""
CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in <module>
RuntimeError: the worker has no memory left
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("disk full\nmore", "disk full"),
        ("\n  \nafter a blank line", "after a blank line"),
        (WRAPPED, "ValueError: no such layer: 7"),
        (WRAPPED.replace("ray::train_fn()", "\x1b[36mray::train_fn()\x1b[39m"), "ValueError: no such layer: 7"),
        (CHAINED, "RuntimeError: the worker has no memory left"),
        ("x" * 500, "x" * 200),
    ],
)
def test_an_errors_line_names_the_cause(text, line):
    assert first_line(RuntimeError(text)) == line


def test_an_error_without_words_is_named_by_its_kind():
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_words_are_listed_as_one_would_say_them():
    assert [listing(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_durations_read_as_spoken():
    assert [duration(s) for s in (4.26, 45, 750, 9000, 200_000)] == ["4.3 s", "45 s", "12 min", "2.5 h", "2.3 days"]


def test_a_table_has_numbers_to_the_right_and_no_blanks_at_the_ends():
    assert aligned([("trial", "forget"), ("a", "0.5")], numbers=[1]) == "trial  forget\na         0.5"
    assert aligned([("trial", "note"), ("a", "")]) == "trial  note\na"
