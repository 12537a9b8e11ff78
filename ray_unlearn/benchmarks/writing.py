"""Own data as the model's tokens: rows become documents, documents become what is scored and generated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import Probe, Prompts, Split
from ray_unlearn.benchmarks.definition import FORGET, HOLD_OUT, MESSAGES, TEXT, Definition, Source
from ray_unlearn.benchmarks.fields import Reader, read_choices
from ray_unlearn.benchmarks.halving import Document, Piece, normal_digest, propose_group, sequences_of
from ray_unlearn.benchmarks.readers import TEXT_COLUMN, Row
from ray_unlearn.benchmarks.refusals import REFUSALS
from ray_unlearn.benchmarks.selecting import reach, written
from ray_unlearn.benchmarks.wmdp import Question, build_probe
from ray_unlearn.config import UserError
from ray_unlearn.counting import counted
from ray_unlearn.metrics.rouge import ENGLISH, SCRIPT, choose_words
from ray_unlearn.models.loading import load_config, load_stops, load_tokenizer
from ray_unlearn.models.marks import encode_marked, end_marks, mark_special, special_pattern, start_marks, whole_text
from ray_unlearn.models.pairs import Encoded
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.sizes import context_length
from ray_unlearn.models.templates import Template, Turn

ATTACK_LIMIT = 100
"""Sequences of each set that membership attacks see: each takes a backward pass."""
DEFAULT_MAX_TOKENS = 512
CONTINUED_TOKENS = 128
"""Tokens that a text is continued by."""
LOOKED_AT = 1000
"""Rows of each set from which its language is told."""
ROWS_AT_ONCE, CHARACTERS_AT_ONCE, LIST_CHARACTERS = 1000, 2**18, 500
"""Rows that are tokenised in one call: it costs more than a short text's tokens, and gives them to all cores, but what
it makes of them takes a hundred bytes a token. LIST_CHARACTERS: what a value counts as that is no text."""
ANSWER_ROOM = (32, 512)
"""Least and most tokens that an answer may have; between them, twice its reference."""


@dataclass
class Writer:
    """Writes rows as the model's tokens; every complaint names file and row."""

    template: Template
    context: int
    width: int
    """Tokens of the longest chunk of a text."""
    reader: Reader = field(default_factory=Reader)
    words: str = ENGLISH
    """What ROUGE counts in these data."""
    proposals: list[str] = field(default_factory=list)
    """Sentences on settings that these data seem to ask for."""

    @classmethod
    def build(cls, definition: Definition, model: str) -> Writer:
        tokenizer, context = load_tokenizer(model), context_length(load_config(model))
        if definition.chat_template and not tokenizer.chat_template:
            raise UserError(
                f"{definition.path}: chat_template = true, but the tokenizer of {model} has none. Write false, or "
                "take the model's chat version"
            )
        if definition.max_tokens and definition.max_tokens > context:
            raise UserError(
                f"{definition.path}: max_tokens = {definition.max_tokens}, but {model} reads at most {context}. "
                "Give no more than that"
            )
        template = Template(tokenizer, definition.template, load_stops(model))
        has_form = template.is_chat or definition.template.tags is not None
        if not has_form and any(source.kind == MESSAGES for source in definition.sets.values()):
            raise UserError(
                f"{definition.path}: conversations need a form for their turns. Take a model with a chat template, "
                "or give tags under [template]: user_start, user_end, assistant_start, assistant_end"
            )
        return cls(template, context, definition.max_tokens or min(DEFAULT_MAX_TOKENS, context))

    def documents(self, source: Source) -> list[Document]:
        """Raises UserError naming the first row that cannot be learnt from."""
        rows = source.read()
        self._propose(rows, source)
        is_text, is_talk = source.kind == TEXT, source.kind == MESSAGES
        write = self._texts if is_text else self._conversations if is_talk else self._pairs
        found: list[Document] = []
        with counted(f"reading {source.table}", len(rows)) as count:
            rows.reverse()  # rows that have been written need no memory
            while rows:
                batch = _next_batch(rows)
                try:
                    found += write(batch, source)
                except UserError:
                    for row in batch:  # the first row's complaint is the one that is made
                        write([row], source)
                    raise
                count(len(found))
        return found

    def _propose(self, rows: Sequence[Row], source: Source) -> None:
        if source.group is None and (group := propose_group([row.values for row in rows])):
            self.proposals.append(f"Rows of {source.table} look as if they belonged together: {group} halves them so.")
        if source.columns.get("question") == "instruction" and any(row.values.get("input") for row in rows):
            joined = 'question = ["instruction", "input"]'
            self.proposals.append(f"The column 'input' of {source.table} is left out: {joined} joins it.")

    def choose_words(self, documents: Mapping[str, Sequence[Document]]) -> None:
        """Find out what ROUGE counts, from the answers and texts of all sets."""
        found = [piece for rows in documents.values() for row in rows[:LOOKED_AT] for piece in row.pieces[:1]]
        texts = [text for piece in found for text in piece.answers]
        texts += [self.template.tokenizer.decode(piece.tokens) for piece in found if not piece.answers]
        self.words = choose_words(texts)

    def _texts(self, rows: Sequence[Row], source: Source) -> list[Document]:
        texts = [self.reader.text(row, _text_column(row, source)) for row in rows]
        cut = cut_texts(self.template.tokenizer, texts, self.width, [row.where for row in rows])
        return [
            Document(
                row.where,
                [Piece(tokens, 1) for tokens in chunks],
                text=normal_digest(text),
                group=self._group(row, source),
            )
            for row, text, chunks in zip(rows, texts, cut, strict=True)
        ]

    def _pairs(self, rows: Sequence[Row], source: Source) -> list[Document]:
        asked = [self._asked(row, source) for row in rows]
        wanted = [
            ([{"role": "user", "content": one.question}], text, one.row.where)
            for one in asked
            for text in (one.answers[0], *one.paraphrased, *one.perturbed)
        ]
        encoded = iter(self._encode_all(wanted))
        return [self._pair(one, encoded, source) for one in asked]

    def _asked(self, row: Row, source: Source) -> _Asked:
        columns = source.columns
        question = self.reader.joined(row, columns["question"])
        answers = self.reader.answers(row, str(columns["answer"]))
        extras = {name: self.reader.texts(row, listed) for name, listed in source.extras.items()}
        for name in ("paraphrased", "perturbed"):
            if name in extras and not extras[name]:
                raise UserError(f"{row.where}: {name} holds no text. Mend or remove the row")
        paraphrased, perturbed = extras.get("paraphrased", [])[:1], extras.get("perturbed", [])
        return _Asked(row, question, answers, paraphrased, perturbed, tuple(extras.get("must_not_say", ())))

    def _pair(self, one: _Asked, encoded: Iterator[Encoded], source: Source) -> Document:
        """encoded: what the question's texts became, in the order of `_pairs`, and what follows of other rows."""
        tokens, start = next(encoded)
        paraphrased = [next(encoded) for _ in one.paraphrased]
        piece = Piece(
            tokens,
            start,
            answers=tuple(text.strip() for text in one.answers),
            paraphrased=paraphrased[0] if paraphrased else None,
            perturbed=tuple(next(encoded) for _ in one.perturbed),
            forbidden=one.forbidden,
        )
        form, asked = normal_digest(f"{one.question}\n{one.answers[0]}"), normal_digest(one.question)
        return Document(one.row.where, [piece], asked, form, self._group(one.row, source))

    def _conversations(self, rows: Sequence[Row], source: Source) -> list[Document]:
        talks = [self.reader.turns(row, str(source.columns["messages"])) for row in rows]
        answered = [[i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i] for turns in talks]
        chosen = [places if source.every_turn else places[-1:] for places in answered]
        wanted = [
            (turns[:place], turns[place]["content"], row.where)
            for row, turns, places in zip(rows, talks, chosen, strict=True)
            for place in places
        ]
        encoded = iter(self._encode_all(wanted))
        found = []
        for row, turns, places in zip(rows, talks, chosen, strict=True):
            pieces = [Piece(*next(encoded), answers=(turns[place]["content"].strip(),)) for place in places]
            asked = normal_digest("\n".join(turn["content"] for turn in turns[: places[-1]]))
            form = normal_digest("\n".join(turn["content"] for turn in turns))
            found.append(Document(row.where, pieces, asked, form, self._group(row, source)))
        return found

    def _encode_all(self, wanted: Sequence[tuple[Sequence[Turn], str, str]]) -> list[Encoded]:
        """Raises UserError naming the first row that is longer than the model reads."""
        encoded = self.template.encode_all(wanted)
        for (tokens, _), (_, _, where) in zip(encoded, wanted, strict=True):
            if len(tokens) > self.context:
                raise UserError(
                    f"{where}: question and answer have {len(tokens)} tokens, but the model reads at most "
                    f"{self.context}. Shorten or remove the row, or take a model with a longer context"
                )
        return encoded

    def _group(self, row: Row, source: Source) -> str | None:
        if source.group is None:
            return None
        value = written(reach(row, source.group))
        if source.group_pattern is None:
            return value
        found = re.search(source.group_pattern, value)
        if found is None:
            raise UserError(f"{row.where}: group_pattern finds nothing in {value!r}. Correct the pattern or the row")
        return found.group(1) if found.re.groups else found.group(0)

    def questions(self, source: Source) -> list[Question]:
        """Raises UserError naming the first row that is no multiple-choice question."""
        columns = source.columns
        rows = source.read()
        asked = read_choices(rows, columns["question"], str(columns["choices"]), str(columns["answer"]), self.reader)
        return [_as_prompt(one.where, one.question, one.options, one.place) for one in asked]

    def refusals(self, definition: Definition) -> Sequences | None:
        """ "I don't know"-like answers in the form of the pairs; None where there are only texts."""
        if definition.refusals is None and all(source.kind == TEXT for source in definition.sets.values()):
            return None
        texts: Sequence[str] = REFUSALS
        if definition.refusals is not None:
            file = definition.refusals
            if not file.is_file():
                raise UserError(f"{file}: no such file. Correct refusals in {definition.path.name}")
            texts = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            if not texts:
                raise UserError(f"{file}: holds no answers. Write one a line")
        return Sequences.build(self.template.encode_pair("?", text, "refusals") for text in texts)

    def split(self, sets: Mapping[str, list[Piece]], asked: Mapping[str, list[Question]]) -> Split:
        probes = {name: Probe(sequences_of(pieces)) for name, pieces in sets.items()}
        for name, pieces in sets.items():
            if pieces and all(piece.paraphrased for piece in pieces):
                probes[f"{name}_paraphrased"] = Probe(Sequences.build(p.paraphrased for p in pieces if p.paraphrased))
            if pieces and all(piece.perturbed for piece in pieces):
                owner = np.concatenate([np.full(len(piece.perturbed), i) for i, piece in enumerate(pieces)])
                wrong = Sequences.build(item for piece in pieces for item in piece.perturbed)
                probes[f"{name}_perturbed"] = Probe(wrong, question=owner)
        for side, questions in asked.items():
            probes[f"{side}_questions"] = build_probe(self.template.tokenizer, questions, self.context)
        attacked = (FORGET, HOLD_OUT) if HOLD_OUT in sets else ()
        return Split(
            probes,
            final_probes={
                f"{name}_attack": Probe(sequences_of(sets[name][:ATTACK_LIMIT]), attack=True) for name in attacked
            },
            generations={name: self._prompts(pieces) for name, pieces in sets.items()},
        )

    def _prompts(self, pieces: Sequence[Piece]) -> Prompts:
        """What stands before the answers; of a text, its first half."""
        prompts, references, rooms = [], [], []
        for piece in pieces:
            at = piece.start if piece.start > 1 or piece.answers else max(1, len(piece.tokens) // 2)
            rest = piece.tokens[at:]
            if piece.answers:
                room, reference = min(max(2 * len(rest), ANSWER_ROOM[0]), ANSWER_ROOM[1]), piece.answers[0]
            else:
                room = min(len(rest), CONTINUED_TOKENS)
                reference = whole_text(self.template.tokenizer.decode(rest[:room], skip_special_tokens=True)).strip()
            prompts.append(piece.tokens[:at].tolist())
            references.append(reference)
            rooms.append(max(1, min(room, self.context - at)))
        others = tuple(piece.answers[1:] for piece in pieces)
        return Prompts(
            prompts,
            references,
            max(rooms),
            stop=self.template.stops,
            words=self.words,
            accepted=others if any(others) else (),
            forbidden=tuple(p.forbidden for p in pieces) if any(p.forbidden for p in pieces) else (),
            rooms=tuple(rooms),
            context=self.context,
        )

    def describe(self, definition: Definition, documents: Mapping[str, Sequence[Document]]) -> list[str]:
        """Sentences on how the rows were written and read."""
        notes = []
        chunks = [count for found in documents.values() for document in found if (count := num_chunks(document))]
        if chunks:
            many = f"{len(chunks)} long text(s) cut into {sum(chunks)} chunks"
            notes.append(f"{many} of at most {self.width} tokens.")
        if any(source.kind != TEXT for source in definition.sets.values()):
            notes += self.template.describe()
        notes += self.reader.describe()
        notes += self.proposals
        if self.words != ENGLISH:
            notes.append(f"ROUGE counts {_WORDS_SAID[self.words]}.")
        if self.words == SCRIPT and definition.refusals is None:
            notes.append('Refusals, for methods that teach them, are English; refusals = "file" gives others.')
        cut = [p for found in documents.values() for d in found for p in d.pieces if p.answers and self._is_cut(p)]
        if cut:
            notes.append(f"{len(cut)} answers are longer than the {ANSWER_ROOM[1]} tokens that are generated at most.")
        return notes

    def _is_cut(self, piece: Piece) -> bool:
        return len(piece.tokens) - piece.start > ANSWER_ROOM[1]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A pair as its row has it. paraphrased: none or one."""

    row: Row
    question: str
    answers: Sequence[str]
    paraphrased: Sequence[str]
    perturbed: Sequence[str]
    forbidden: tuple[str, ...]


_WORDS_SAID = {
    SCRIPT: "words by script (characters where it writes no spaces), not rouge-score's a-z",
    "code": "names, numbers and operators of code, not rouge-score's a-z",
}


def num_chunks(document: Document) -> int:
    """Rows that a text was cut into; 0 of one that is whole, and of pairs and conversations."""
    return len(document.pieces) if len(document.pieces) > 1 and not document.question else 0


def _next_batch(rows: list[Row]) -> list[Row]:
    """Rows off the end, as many as are tokenised in one call."""
    batch: list[Row] = []
    size = 0
    while rows and len(batch) < ROWS_AT_ONCE and size < CHARACTERS_AT_ONCE:
        batch.append(rows.pop())
        size += sum(len(value) if isinstance(value, str) else LIST_CHARACTERS for value in batch[-1].values.values())
    return batch


def cut_texts(tokenizer: Any, texts: Sequence[str], width: int, places: Sequence[str]) -> list[list[np.ndarray]]:
    """Each text as one sequence (int32), or, where it is longer than `width` tokens, as the fewest chunks that hold all
    of it.

    The chunks are of nearly equal length, so that no tail is too short to learn from. The text of a special token is
    text. places: each text's file and row.
    """
    special = special_pattern(tokenizer)
    plain = [text for text in texts if not special.search(text)]
    wholes = iter(tokenizer(plain, return_attention_mask=False)["input_ids"] if plain else ())
    around = start_marks(tokenizer), end_marks(tokenizer)
    found = []
    for text, where in zip(texts, places, strict=True):
        if special.search(text):
            prefix, body = around[0], encode_marked(tokenizer, mark_special(text, special))
            whole = [*prefix, *body]
        else:
            whole = next(wholes)
            if len(whole) < 2:
                raise UserError(f"{where}: {text!r} has fewer than two tokens, nothing to predict. Remove the row")
            prefix = whole[:1] if whole[0] == tokenizer.bos_token_id else []
            body = whole[len(around[0]) : len(whole) - len(around[1])]
        if len(whole) <= width:
            found.append([np.array(whole, dtype=np.int32)])
            continue
        count = -(-len(body) // (width - len(prefix)))
        chunks = np.array_split(np.array(body, dtype=np.int32), count)
        found.append([np.concatenate([np.array(prefix, dtype=np.int32), chunk]) for chunk in chunks])
    return found


def _text_column(row: Row, source: Source) -> str:
    """The column of a text; of a list of texts, whatever it was called."""
    name = str(source.columns["text"])
    return TEXT_COLUMN if list(row.values) == [TEXT_COLUMN] else name


def _as_prompt(where: str, question: str, options: Sequence[str], place: int) -> Question:
    letters = [chr(ord("A") + number) for number in range(len(options))]
    lines = [f"{letter}. {option.strip()}" for letter, option in zip(letters, options, strict=True)]
    prompt = "\n".join([question.strip(), *lines, "Answer:"])
    return Question(prompt, tuple(f" {letter}" for letter in letters), place, where)
