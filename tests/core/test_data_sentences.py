"""Labelled sentences as counts: the authors' sparse files, the published collections, the user's own lines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iclr18cli.data.registry import open_split
from iclr18cli.data.sentences import counts, read_counts, vocabulary, words
from iclr18cli.errors import UserError


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("ICLR18_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sparse(**changes):
    """The rows [2 0 1] and [0 3 0] to train, [0 0 1] to test."""
    arrays = {
        "train_data": np.array([2, 1, 3], np.uint8), "train_indices": np.array([0, 2, 1]),
        "train_indptr": np.array([0, 2, 3]), "train_shape": np.array([2, 3]), "train_label": np.array([1, 0], np.uint8),
        "test_data": np.array([1], np.uint8), "test_indices": np.array([2]), "test_indptr": np.array([0, 1]),
        "test_shape": np.array([1, 3]), "test_label": np.array([1], np.uint8),
        "vocab": np.array(["film", "movi", "one"]), "label_names": np.array(["objective", "subjective"]),
    }  # fmt: skip
    return arrays | changes


def test_sparse_rows_become_the_counts_they_stand_for(tmp_path):
    (tmp_path / "zhai-text").mkdir()
    np.savez(tmp_path / "zhai-text/subj.npz", **sparse())
    train, test = (open_split("subj", split, data_dir=tmp_path) for split in ("train", "test"))
    assert train.x.dtype == torch.uint8
    assert train.x.tolist() == [[2, 0, 1], [0, 3, 0]]
    assert train.y.tolist() == [1, 0]
    assert test.x.tolist() == [[0, 0, 1]]
    assert train.classes == ("objective", "subjective")
    assert words("subj", data_dir=tmp_path) == ("film", "movi", "one")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_indices": np.array([0, 3, 1])}, "0 .. 2"),
        ({"train_indices": np.array([0, -1, 1])}, "0 .. 2"),
        ({"train_indptr": np.array([0, 2])}, "do not fit together"),
        ({"train_indices": np.array([[0], [2], [1]])}, "one axis"),
        ({"train_indices": np.array([2, 2, 1])}, "twice in a row"),
        ({"vocab": np.array([b"film", b"movi", b"one"])}, "text"),
        ({"train_shape": np.array([np.inf, 3])}, "whole numbers"),
        ({"train_indptr": np.array([0, 9, 3])}, "ends of the rows"),
        ({"train_label": np.array([1, 2], np.uint8)}, "label lies outside"),
        ({"train_shape": np.array([2, 3, 1])}, "unpack"),
        ({"train_shape": np.array([2, 4])}, "do not fit together"),
        ({"train_data": np.array([2.0, 1.0, 3.0])}, "uint8"),
        ({"vocab": np.array([object(), 1, 2], dtype=object)}, "pickle"),
    ],
)
def test_a_damaged_file_of_counts_is_refused_and_nothing_in_it_runs(tmp_path, changes, said):
    np.savez(tmp_path / "own.npz", **sparse(**changes))
    with pytest.raises(UserError) as caught:
        read_counts(tmp_path / "own.npz", "train")
    assert said in caught.value.why


def test_the_authors_files_have_the_sizes_they_state(shared_data):
    if not (shared_data / "zhai-text/mr.npz").is_file():
        pytest.skip("needs the authors' file")
    train, test = (open_split("mr", split, data_dir=shared_data) for split in ("train", "test"))
    assert (len(train), len(test), train.shape) == (8529, 2131, (11413,))
    assert int((train.x > 0).any(1).sum()) == len(train)


def lines(tmp_path, text, name="own.tsv"):
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return f"sentences:{tmp_path / name}"


TEXT = "".join(f"good\tfine film {i}, it's fine\nbad\tdull plot {i}\n" for i in range(10))


def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path):
    split = open_split(lines(tmp_path, TEXT.encode("utf-8-sig")), "train")
    assert split.classes == ("bad", "good")


@pytest.mark.parametrize(
    "text",
    ["label\ttext\n" + TEXT, "".join(f"fine film {i}\tgood\ndull plot {i}\tbad\n" for i in range(10))],
    ids=["header", "columns swapped"],
)
def test_a_header_and_swapped_columns_are_told(tmp_path, text):
    with pytest.raises(UserError, match="has one sentence"):
        open_split(lines(tmp_path, text), "train")


def test_a_test_part_of_one_class_is_taken(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "test.txt").write_text("good\tfine\n")
    assert len(open_split(f"sentences:{tmp_path}", "test")) == 1


def test_own_lines_are_divided_once_with_every_class_in_both_parts(tmp_path):
    reference = lines(tmp_path, TEXT)
    train, test = (open_split(reference, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    assert train.classes == test.classes == ("bad", "good")
    assert train.y.bincount().tolist() == [8, 8]
    assert test.y.bincount().tolist() == [2, 2]
    known = words(reference)
    assert known[:2] == ("fine", "dull")  # twice in each of 8, then once, by alphabet
    fine = known.index("fine")
    assert train.x[train.y == 1][:, fine].tolist() == [2] * 8
    assert int(train.x[train.y == 0][:, fine].sum()) == 0
    assert open_split(reference, "train").digest() == train.digest()


def test_words_of_the_test_part_alone_are_not_in_the_vocabulary(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    lines(folder, "a\tone two\nb\tthree\n", "train.txt")
    lines(folder, "b\tthree four\na\tfour\n", "test.txt")
    test = open_split(f"sentences:{folder}", "test")
    assert words(f"sentences:{folder}") == ("one", "three", "two")
    assert test.x.tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("good\tone\nno tab here\n", "line 2"),
        ("good\tone\n\nbad\t  \n", "line 3"),
        ("\tone\n", "line 1"),
        ("good\tone\ngood\ttwo\n", "1 classes"),
        ("", "0 classes"),
        (b"\x80\x01\x02\nx", "line 1"),
        ("good\tone\nbad\ttwo\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        open_split(lines(tmp_path, text), "train")
    assert said in caught.value.why


@pytest.mark.parametrize("what", ["nothing.tsv", "."])
def test_a_path_without_sentences_says_what_was_looked_for(tmp_path, what):
    with pytest.raises(UserError) as caught:
        open_split(f"sentences:{tmp_path / what}", "train")
    assert "sentences:" in caught.value.fix


def test_the_published_collections_are_read_where_the_counts_are_not_there(tmp_path):
    folder = tmp_path / "text-classification"
    folder.mkdir()
    lines(folder, "0 a gem of caf\xe9s\n1 he meets her\n".encode("latin-1") * 5, "subj.all")
    lines(folder, "good\n" * 5, "rt-polarity.pos")
    lines(folder, "bad\n" * 5, "rt-polarity.neg")
    subj = open_split("subj", "train", data_dir=tmp_path)
    assert subj.classes == ("objective", "subjective")
    gem = words("subj", data_dir=tmp_path).index("cafés")
    assert subj.y[subj.x[:, gem] > 0].tolist() == [1] * 4
    mr = open_split("mr", "test", data_dir=tmp_path)
    assert sorted(mr.y.tolist()) == [0, 1]
    assert open_split(f"sentences:{folder}", "test").x.shape == mr.x.shape
    with pytest.raises(UserError, match="not on this machine"):
        open_split("mr", "test", data_dir=tmp_path / "elsewhere")


def test_counts_stop_at_255_and_ignore_what_is_unknown():
    assert counts(["a " * 300 + "b", "c"], ("a", "b")).tolist() == [[255, 1], [0, 0]]


def test_a_vocabulary_keeps_the_most_frequent_words():
    assert vocabulary(["x y", "y z", "y z"], limit=2) == ("y", "z")
