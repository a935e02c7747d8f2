import errno
import json
import os
import zlib

import numpy as np
import pytest

from dataloader import DataLoader, count_tokens, write_shard
from errors import FormatError, RunError, UserError


@pytest.fixture
def corpus(tmp_path):
    """Three shards that count up, so that a window's first token says where it is from."""
    write_shard(tmp_path / "train_000000.bin", np.arange(0, 101))
    write_shard(tmp_path / "train_000001.bin", np.arange(200, 204))  # shorter than a window
    write_shard(tmp_path / "train_000002.bin", np.arange(300, 367))
    return tmp_path / "train_*.bin"


WINDOWS = [*range(0, 100, 10), *range(300, 360, 10)]  # of 10 tokens: ten, none, and six


def loader(corpus, batch_size=3, **options):
    return DataLoader(corpus, batch_size, 10, vocab_size=1000, **options)


def starts(loader, num_batches):
    """The first token of every window of the next batches."""
    return [int(token) for _ in range(num_batches) for token in loader.next_batch()[0][:, 0]]


def test_a_shard_has_llm_c_s_layout(tmp_path):
    write_shard(tmp_path / "a.bin", [1, 258, 65535])
    data = (tmp_path / "a.bin").read_bytes()
    header = np.frombuffer(data[:1024], "<u4")
    assert header[:4].tolist() == [20240520, 1, 3, zlib.crc32(data[1024:])]
    assert not header[4:].any()
    assert data[1024:] == bytes([1, 0, 2, 1, 255, 255])
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_tokens_beyond_16_bits_are_written_as_llm_c_does_for_llama_3(tmp_path):
    write_shard(tmp_path / "a.bin", [1, 258, 65536])
    data = (tmp_path / "a.bin").read_bytes()
    header = np.frombuffer(data[:1024], "<u4")
    assert header[:4].tolist() == [20240801, 7, 3, zlib.crc32(data[1024:])]
    assert not header[4:].any()
    assert data[1024:] == bytes([1, 0, 0, 0, 2, 1, 0, 0, 0, 0, 1, 0])


def test_shards_of_both_widths_are_one_corpus(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(21))
    write_shard(tmp_path / "b.bin", np.arange(262_000, 262_021))
    assert count_tokens(tmp_path / "?.bin") == [21, 21]
    batches = DataLoader(tmp_path / "?.bin", 2, 10, vocab_size=262_021, shuffle=False)
    assert starts(batches, 2) == [0, 10, 262_000, 262_010]
    small = DataLoader(tmp_path / "b.bin", 2, 10, vocab_size=262_020)
    with pytest.raises(FormatError, match="token 262020 at position 20 is outside"):
        small.next_batch()


@pytest.mark.parametrize("token", [2**31, -1])
def test_what_is_no_token_is_not_written(tmp_path, token):
    with pytest.raises(UserError, match=rf"a\.bin: {token} is no token"):
        write_shard(tmp_path / "a.bin", [0, token])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_shard(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.bin", [1])
    before = (tmp_path / "a.bin").read_bytes()

    def full_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"a\.bin: No space left"):
        write_shard(tmp_path / "a.bin", [1, 2, 3])
    assert (tmp_path / "a.bin").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_windows_in_file_order_share_one_token_with_the_next(corpus):
    unshuffled = loader(corpus, batch_size=4, shuffle=False)
    assert len(unshuffled) == 4
    for first in range(0, 16, 4):
        tokens, targets = unshuffled.next_batch()
        expected = np.array(WINDOWS[first : first + 4])[:, None] + np.arange(10)
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_array_equal(targets, expected + 1)
        assert tokens.dtype == targets.dtype == np.int32
        assert tokens.flags.c_contiguous
        assert targets.flags.c_contiguous
    assert starts(unshuffled, 1) == WINDOWS[:4]  # the next epoch


def test_batches_do_not_change_when_the_next_is_read(corpus):
    batches = loader(corpus)
    tokens, _ = batches.next_batch()
    before = tokens.copy()
    batches.next_batch()
    np.testing.assert_array_equal(tokens, before)


def test_every_epoch_is_another_permutation(corpus):
    shuffled = loader(corpus, batch_size=4)
    first, second = starts(shuffled, 4), starts(shuffled, 4)
    assert sorted(first) == sorted(second) == WINDOWS
    assert WINDOWS != first != second != WINDOWS
    assert starts(loader(corpus, batch_size=4), 4) == first
    assert starts(loader(corpus, batch_size=4, seed=1), 4) != first


def test_what_fills_no_batch_is_left_out(corpus):
    assert len(loader(corpus, batch_size=3)) == 5
    assert len(loader(corpus, batch_size=16)) == 1
    ordered = loader(corpus, batch_size=3, shuffle=False)
    assert starts(ordered, 6) == WINDOWS[:15] + WINDOWS[:3]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_without_drop_last_every_window_is_read_once(corpus, num_ranks):
    options = {"batch_size": 3, "shuffle": False, "drop_last": False, "num_ranks": num_ranks}
    ranks = [loader(corpus, rank=rank, **options) for rank in range(num_ranks)]
    assert {len(rank) for rank in ranks} == {-(-16 // (3 * num_ranks))}
    for _ in range(2):  # epochs
        seen = []
        for _ in range(len(ranks[0])):
            parts = [rank.next_batch() for rank in ranks]
            seen += [int(token) for tokens, _ in parts for token in tokens[:, 0]]
            for tokens, targets in parts:
                assert tokens.shape == targets.shape == (len(tokens), 10)
                np.testing.assert_array_equal(targets, tokens + 1)
        assert seen == WINDOWS
        assert ranks[-1].state()["read"] == 16
    if num_ranks == 3:
        assert [len(part[0]) for part in parts] == [3, 3, 1]
    assert [rank.next_batch()[0].shape for rank in ranks] == [(3, 10)] * num_ranks


def test_a_rank_may_have_nothing_of_the_last_batch(corpus):
    last = loader(corpus, batch_size=9, shuffle=False, drop_last=False, rank=2, num_ranks=3)
    assert len(last) == 1
    tokens, targets = last.next_batch()
    assert tokens.shape == targets.shape == (0, 10)
    assert last.next_batch()[0].shape == (0, 10)  # of the next epoch


def test_ranks_together_see_what_one_rank_with_a_larger_batch_sees(corpus):
    together = loader(corpus, batch_size=6)
    ranks = [loader(corpus, batch_size=2, rank=rank, num_ranks=3) for rank in range(3)]
    assert {len(rank) for rank in ranks} == {len(together)} == {2}
    for _ in range(5):  # beyond two epoch ends
        parts = [rank.next_batch() for rank in ranks]
        tokens, targets = together.next_batch()
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), tokens)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), targets)
        assert len(set(tokens[:, 0])) == 6


@pytest.mark.parametrize("batches_before", [0, 3, 5, 7])
def test_restore_goes_on_with_the_same_batches(corpus, batches_before):
    first = loader(corpus)  # 5 batches per epoch
    starts(first, batches_before)
    state = json.loads(json.dumps(first.state()))
    expected = starts(first, 8)
    second = loader(corpus)
    starts(second, 2)
    second.restore(state)
    assert starts(second, 8) == expected
    assert second.state() == first.state()


def test_another_number_of_ranks_goes_on_with_the_windows_that_follow(corpus):
    two = [loader(corpus, batch_size=2, rank=rank, num_ranks=2) for rank in range(2)]
    read = [window for rank in two for window in starts(rank, 3)]
    one = loader(corpus, batch_size=1)
    one.restore(two[1].state())
    assert sorted(read + starts(one, 4)) == WINDOWS


def test_a_flipped_bit_in_a_shard_is_noticed(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, range(100))
    data = bytearray(path.read_bytes())
    for byte in (1024, 1100, -1):
        damaged = data.copy()
        damaged[byte] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="checksum is wrong; prepare the data again"):
            loader(path)
    data[12:16] = bytes(4)  # as llm.c writes it
    path.write_bytes(data)
    assert len(loader(path)) == 3


def test_reset_goes_back_to_the_beginning(corpus):
    batches = loader(corpus)
    first = starts(batches, 7)
    batches.reset()
    assert starts(batches, 7) == first


@pytest.mark.parametrize(
    "state",
    [
        {"epoch": -1, "read": 0, "windows": 16},
        {"epoch": 0, "read": -1, "windows": 16},
        {"epoch": 0, "read": 17, "windows": 16},
        {"epoch": 0.0, "read": 0, "windows": 16},
        {"epoch": 0, "read": True, "windows": 16},
        {"epoch": 0, "read": 0},
        {"epoch": 0, "read": 0, "windows": 15},  # of other data
        {"epoch": 0, "read": 0, "windows": 16, "rank": 0},
        [0, 0],
        None,
    ],
)
def test_a_state_that_does_not_fit_is_refused(corpus, state):
    batches = loader(corpus)
    with pytest.raises(UserError, match=r"cannot go on from .* of its 16 windows"):
        batches.restore(state)
    assert batches.state() == {"epoch": 0, "read": 0, "windows": 16}


def test_the_tokens_of_shards_are_counted(corpus):
    assert count_tokens(corpus) == [101, 4, 67]


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"no file matches .*train_\*\.bin; prepare a corpus"):
        loader(tmp_path / "train_*.bin")
    with pytest.raises(UserError, match="no file matches"):
        loader(tmp_path)  # a folder is no shard


def header(magic=20240520, version=1, count=3):
    return np.array([magic, version, count] + [0] * 253, "<i4").tobytes()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "has 0 bytes, fewer than the 1024 of a token file's header"),
        (header()[:1023], "has 1023 bytes, fewer than"),
        (header(magic=7) + bytes(6), "begins with 7 instead of 20240520 or 20240801.* another fo"),
        (header(magic=20240326) + bytes(6), "begins with 20240326 .* looks like a llm.c model"),
        (header(magic=20240801) + bytes(12), "is a token file of version 1, and only 7"),
        (header(magic=20240801, version=7) + bytes(6), "promises 3 tokens and has 1.5; it is dam"),
        (header(version=2) + bytes(6), "is a token file of version 2, and only 1"),
        (header() + bytes(4), "promises 3 tokens and has 2; it is damaged"),
        (header() + bytes(7), "promises 3 tokens and has 3.5; it is damaged"),
        (header(count=-1), "promises -1 tokens and has 0; it is damaged"),
        (header(count=0), "holds no tokens"),
    ],
)
def test_a_file_that_is_no_shard_is_refused(tmp_path, data, sentence):
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(FormatError, match=rf"a\.bin {sentence}"):
        loader(tmp_path / "a.bin")


def test_a_corpus_shorter_than_one_batch_is_refused(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(60))
    assert len(loader(tmp_path / "a.bin", batch_size=5)) == 1
    sentence = "holds 60 tokens, and a batch of 6 x 10 needs 61; lower the batch size or the seq"
    with pytest.raises(UserError, match=sentence):
        loader(tmp_path / "a.bin", batch_size=6)
    with pytest.raises(UserError, match=sentence):
        loader(tmp_path / "a.bin", batch_size=2, num_ranks=3)
    assert len(loader(tmp_path / "a.bin", batch_size=6, drop_last=False)) == 1
    for drop_last in (True, False):
        with pytest.raises(UserError, match="holds 60 tokens, and a batch of 1 x 60 needs 61; low"):
            DataLoader(tmp_path / "a.bin", 1, 60, vocab_size=1000, drop_last=drop_last)


def test_a_token_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(100))
    tokens = np.zeros(100)
    tokens[57] = 1000
    write_shard(tmp_path / "b.bin", tokens)
    batches = loader(tmp_path / "?.bin", batch_size=9, shuffle=False)
    batches.next_batch()
    with pytest.raises(
        FormatError, match=r"b\.bin: token 1000 at position 57 is outside the vocabulary of 1000"
    ):
        batches.next_batch()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "a batch of 0 windows of 10 tokens"),
        ({"seq_len": -1}, "a batch of 3 windows of -1 tokens"),
        ({"rank": 2, "num_ranks": 2}, "rank 2 must be"),
        ({"rank": -1}, "rank -1 must be"),
        ({"seed": -1}, "seed -1 must be"),
    ],
)
def test_absurd_arguments_are_refused(corpus, options, sentence):
    arguments = {"batch_size": 3, "seq_len": 10, "vocab_size": 1000, **options}
    with pytest.raises(UserError, match=sentence):
        DataLoader(corpus, **arguments)
