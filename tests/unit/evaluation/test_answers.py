import pytest
import torch

from vllm_edsd.errors import UserError
from vllm_edsd.evaluation.answers import Answer, Question, identity, read, write

ASKED = [Question("a", "maths", (7, 9)), Question("b", "code", (5,))]
ANSWERS = [Answer(ASKED[0], torch.tensor([7, 9, 1, 2, 3, 4, 5]), 3), Answer(ASKED[1], torch.tensor([5, 8, 6, 6]), 1)]
MADE = identity("f00", ASKED, {"temperature": 0.0, "seed": 0})


@pytest.fixture
def file(tmp_path):
    write(tmp_path / "answers.safetensors", ANSWERS, MADE)
    return tmp_path / "answers.safetensors"


def test_what_is_written_is_read(file):
    found = read(file, ASKED, MADE, 2)
    for one, other in zip(found, ANSWERS, strict=True):
        assert (one.question, one.length, one.tokens.tolist()) == (other.question, other.length, other.tokens.tolist())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (identity("f00", ASKED, {"temperature": 0.8, "seed": 0}), "temperature 0.0, now 0.8"),
        (identity("bad", ASKED, {"temperature": 0.0, "seed": 0}), "target 'f00', now 'bad'"),
        (identity("f00", ASKED[::-1], {"temperature": 0.0, "seed": 0}), "answers made with prompts"),
    ],
)
def test_answers_made_another_way_are_refused(file, made, message):
    with pytest.raises(UserError, match=message):
        read(file, ASKED, made, 2)


def test_a_longer_draft_than_they_were_made_for_is_refused(file):
    with pytest.raises(UserError, match=r"for --num-tokens 3 at most, and 6 are asked for"):
        read(file, ASKED, MADE, 5)


@pytest.mark.parametrize("spoil", [lambda data: data[:50], lambda data: b"", lambda data: b"x" * 300])
def test_a_damaged_file_is_named(file, spoil):
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError, match=r"answers\.safetensors is damaged or no file of answers"):
        read(file, ASKED, MADE, 2)
