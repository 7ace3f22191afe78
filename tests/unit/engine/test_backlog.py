"""Steps that the drafter sat out, handed over later as if they had been one."""

import dataclasses

import pytest
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_edsd.engine import backlog as module
from vllm_edsd.engine.backlog import Backlog, Batch

SIZE = 4
# Blocks of the KV cache, out of order as a busy server's are.
TABLES = {"a": [7, 2, 5, 11], "b": [3, 9, 1, 0], "c": [4, 8, 6, 10]}
HUNDREDS = {"a": 100, "b": 200, "c": 300}


def step(**positions):
    """A step that reads these positions of the requests; a token says whose it is and where it stands."""
    lengths = [len(places) for places in positions.values()]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    owners = [(request, place) for request, places in positions.items() for place in places]
    slots = [TABLES[request][place // SIZE] * SIZE + place % SIZE for request, place in owners]
    ends = torch.tensor([places[-1] + 1 for places in positions.values()], dtype=torch.int32)
    metadata = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts.clone(),
        seq_lens=ends,
        num_reqs=len(lengths),
        num_actual_tokens=len(owners),
        max_query_len=max(lengths),
        max_seq_len=int(ends.max()),
        block_table_tensor=torch.tensor([TABLES[request] for request in positions], dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
    )
    tokens = torch.tensor([HUNDREDS[request] + place for request, place in owners], dtype=torch.int32)
    places = torch.tensor([place for _, place in owners])
    following = torch.tensor([HUNDREDS[request] + places[-1] + 1 for request, places in positions.items()])
    return list(positions), Batch(metadata, tokens, places, torch.stack([tokens / 2, tokens / 4], dim=1), following)


def assert_same(found, expected, apart=()):
    """`found` is the batch of step `expected`, but for fields `apart` of its metadata."""
    _, wanted = expected
    for name in ("tokens", "positions", "hidden", "next"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (name, one.tolist()) == (name, other.tolist())
        assert name == "next" or one.dtype == other.dtype
    for field in dataclasses.fields(found.metadata):
        one, other = getattr(found.metadata, field.name), getattr(wanted.metadata, field.name)
        if field.name in apart:
            continue
        if isinstance(other, torch.Tensor):
            assert (field.name, one.dtype, one.tolist()) == (field.name, other.dtype, other.tolist())
        else:
            assert (field.name, one) == (field.name, other)


def taken(backlog, **positions):
    """What is read with this step, all in one pass."""
    before, found = backlog.take(*step(**positions), 64)
    assert before == []
    return found


@pytest.fixture
def backlog():
    return Backlog(lambda: SIZE, capacity=64)


def test_what_was_put_off_is_read_with_the_next_step(backlog):
    backlog.add(*step(a=[5], b=[2]))
    backlog.add(*step(a=[6], b=[3]))
    assert_same(taken(backlog, a=[7], b=[4]), step(a=[5, 6, 7], b=[2, 3, 4]))


def test_slots_are_those_of_the_block_table(backlog):
    backlog.add(*step(a=[2, 3, 4]))
    assert taken(backlog, a=[5]).metadata.slot_mapping.tolist() == [7 * 4 + 2, 7 * 4 + 3, 2 * 4 + 0, 2 * 4 + 1]


def test_steps_of_uneven_length(backlog):
    """The first step without drafting still verified a draft, of another length for each request."""
    backlog.add(*step(a=[3, 4, 5], b=[8], c=[0, 1]))
    backlog.add(*step(a=[6], b=[9], c=[2]))
    found = taken(backlog, a=[7, 8], b=[10], c=[3, 4, 5])
    assert_same(found, step(a=[3, 4, 5, 6, 7, 8], b=[8, 9, 10], c=[0, 1, 2, 3, 4, 5]))


def test_requests_may_change_places_come_and_stay_away(backlog):
    backlog.add(*step(a=[5], b=[2]))
    backlog.add(*step(b=[3]))
    assert_same(taken(backlog, c=[0, 1], b=[4]), step(c=[0, 1], b=[2, 3, 4]))
    assert_same(taken(backlog, b=[5], a=[6]), step(b=[5], a=[5, 6]))


def test_what_was_taken_is_not_taken_again(backlog):
    backlog.add(*step(a=[5]))
    taken(backlog, a=[6])
    again = step(a=[7])
    assert backlog.take(*again, 64) == ([], again[1])
    assert backlog.waiting == {}


def test_with_nothing_put_off_the_step_is_handed_back(backlog):
    given = step(a=[5], b=[2, 3])
    assert backlog.take(*given, 64)[1] is given[1]


def test_the_engines_buffers_may_be_overwritten_meanwhile(backlog):
    given = step(a=[5, 6])
    backlog.add(*given)
    for tensor in given[1].part:
        tensor.zero_()
    assert_same(taken(backlog, a=[7]), step(a=[5, 6, 7]))


def test_taking_leaves_the_engines_metadata_alone(backlog):
    backlog.add(*step(a=[5], b=[2]))
    given = step(a=[6], b=[3])
    backlog.take(*given, 64)
    assert_same(given[1], step(a=[6], b=[3]))


def test_a_preempted_request_reads_everything_anew(backlog):
    backlog.add(*step(a=[5], b=[2]))
    backlog.add(*step(a=[6], b=[3]))
    assert_same(taken(backlog, a=range(8), b=[4]), step(a=range(8), b=[2, 3, 4]))
    assert backlog.waiting == {}


def test_a_preempted_request_alone_is_handed_back(backlog):
    backlog.add(*step(a=[5]))
    given = step(a=range(7))
    assert backlog.take(*given, 64)[1] is given[1]
    assert backlog.waiting == {}


def test_a_preempted_request_may_be_put_off_anew(backlog):
    backlog.add(*step(a=range(6), b=[2]))
    backlog.add(*step(a=range(4), b=[3]))
    backlog.add(*step(a=[4, 5]))
    assert_same(taken(backlog, a=[6], b=[4]), step(a=range(7), b=[2, 3, 4]))


def test_a_prompt_read_in_chunks_may_be_put_off(backlog):
    """Between two chunks nothing is emitted; what follows a chunk is the next one's first token."""
    backlog.add(*step(a=range(4), b=[7]))
    backlog.add(*step(a=range(4, 7), b=[8]))
    assert_same(taken(backlog, a=[7, 8], b=[9]), step(a=range(9), b=[7, 8, 9]))


@pytest.mark.parametrize(
    ("most", "capacity", "passes"),
    [
        (8, 8, []),
        (7, 8, [{"a": range(2, 6), "b": range(1, 3)}]),
        (8, 7, [{"a": range(2, 6), "b": range(1, 3)}]),
        (8, 6, [{"a": range(2, 6), "b": range(1, 3)}]),
        (8, 5, [{"a": range(2, 6), "b": [1]}, {"b": [2]}]),
        (8, 4, [{"a": range(2, 6)}, {"b": range(1, 3)}]),
        (8, 3, [{"a": range(2, 5)}, {"a": [5], "b": range(1, 3)}]),
    ],
)
def test_more_than_is_wanted_at_once_or_fits_is_read_before(most, capacity, passes):
    backlog = Backlog(lambda: SIZE, capacity)
    backlog.add(*step(a=[2, 3], b=[1]))
    backlog.add(*step(a=[4, 5], b=[2]))
    before, last = backlog.take(*step(a=[6], b=[3]), most)
    assert backlog.waiting == {}
    assert len(before) == len(passes)
    for found, positions in zip(before, passes, strict=True):
        assert_same(found, step(**positions), apart=("max_seq_len",))  # an upper bound
    assert_same(last, step(a=[6], b=[3]) if passes else step(a=range(2, 7), b=range(1, 4)))


def test_of_a_long_prompt_all_but_the_last_token_may_be_read_before(backlog):
    (before,), last = backlog.take(*step(a=[9], b=range(12)), 4)
    assert_same(before, step(b=range(11)), apart=("max_seq_len",))
    assert_same(last, step(a=[9], b=[11]))


def test_finished_requests_are_forgotten(backlog):
    backlog.add(*step(a=[5], b=[2]))
    backlog.forget(["a", "never seen"])
    assert backlog.waiting.keys() == {"b"}
    assert_same(taken(backlog, a=[6], b=[3]), step(a=[6], b=[2, 3]))


def test_there_is_room_until_too_much_waits(monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    backlog = Backlog(lambda: SIZE, capacity=3)
    assert backlog.room(6) and not backlog.room(7)
    backlog.add(*step(a=[5], b=[2]))
    backlog.add(*step(a=[6, 7]))
    assert backlog.room(2) and not backlog.room(3)
    backlog.take(*step(a=[8]), 64)
    assert backlog.room(5) and not backlog.room(6)
