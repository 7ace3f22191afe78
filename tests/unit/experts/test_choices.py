import json

import pytest

from vllm_edsd.errors import UserError
from vllm_edsd.experts.choices import read_questions
from vllm_edsd.experts.texts import LONGEST


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def asked(count, **changes):
    return [{"id": n, "turns": ["?" * (n % 3 + 1)], "reference": chr(ord("a") + n % 26)} | changes for n in range(count)]


def read(file, count=5, options=4, seed=0):
    """Tokens are characters; a user's turn ends with a newline."""
    return read_questions(file, lambda turn: [*map(ord, turn), 10], lambda text: [*map(ord, text)], count, options, seed)


def said(text):
    return "".join(map(chr, text.wanted.tolist()))


def test_the_right_answer_stands_among_others(tmp_path):
    lines = asked(9)
    questions = read(write(tmp_path / "math.v2.jsonl", lines))
    assert len(questions) == 5
    for question in questions:
        answers = [said(text) for text in question.answers]
        assert question.group == "math" and len(set(answers)) == 4
        prompts = {tuple(text.tokens[0, : text.answer].tolist()) for text in question.answers}
        assert len(prompts) == 1
        (line,) = (line for line in lines if line["reference"] == answers[question.right])
        assert prompts == {(*map(ord, line["turns"][0]), 10)}


def test_the_right_place_varies_and_the_seed_decides(tmp_path):
    file = write(tmp_path / "q.jsonl", asked(20))
    questions = read(file, 20)
    assert len({question.right for question in questions}) == 4

    def shape(questions):
        return [(question.right, *map(said, question.answers)) for question in questions]

    assert shape(read(file, 20)) == shape(questions)
    assert shape(read(file, 20, seed=1)) != shape(questions)


@pytest.mark.parametrize(
    ("lines", "need"),
    [
        (asked(4), 5),
        ([*asked(4), *asked(9, reference=None)], 5),
        (asked(9, reference="yes"), 5),  # the same answer to all: there are no others
        (asked(9, turns=["?" * LONGEST]), 5),  # no room for an answer
        ([*asked(2), *asked(7, reference="yes")], 5),
    ],
    ids=["few", "without references", "one answer", "too long", "two answers"],
)
def test_too_few_questions_are_refused(lines, need, tmp_path):
    with pytest.raises(UserError, match=r"q\.jsonl has .* are needed"):
        read(write(tmp_path / "q.jsonl", lines), need)


def test_the_same_answer_is_never_offered_twice(tmp_path):
    lines = [*asked(4), *asked(8, reference="yes")]
    for question in read(write(tmp_path / "q.jsonl", lines), 12):
        answers = [said(text) for text in question.answers]
        assert len(set(answers)) == 4, answers


def test_numbers_may_be_references(tmp_path):
    lines = [{"id": n, "turns": ["?"], "reference": n} for n in range(6)]
    assert {said(text) for question in read(write(tmp_path / "q.jsonl", lines), 6) for text in question.answers} == set(
        "012345"
    )


def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"id": 1, "turns": []}\n')
    with pytest.raises(UserError, match=r"q\.jsonl"):
        read(file)
