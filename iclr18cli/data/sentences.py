"""Labelled sentences as counts of words: SUBJ and MR, and the user's own texts.

N sentences · V words of the vocabulary
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.archives import read_arrays
from iclr18cli.data.faults import damaged
from iclr18cli.data.holdout import stratified
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError

WORDS = 20_000
"""Words of a vocabulary made here at most: the most frequent ones of the training part."""
ORDER_SEED = 2018
LARGEST = 4_000_000_000
"""Bytes that a table of counts may take in memory."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_COUNTS = {"subj": "zhai-text/subj.npz", "mr": "zhai-text/mr.npz"}
_CLASSES = {"subj": ("objective", "subjective"), "mr": ("pos", "neg")}
_LABELLED = {"subj": ("text-classification/subj.all", {"0": "subjective", "1": "objective"})}
_PAIRS: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "subj": (
        {"rotten_imdb/plot.tok.gt9.5000": "objective", "rotten_imdb/quote.tok.gt9.5000": "subjective"},
        {"plot.tok.gt9.5000": "objective", "quote.tok.gt9.5000": "subjective"},
    ),
    "mr": (
        {"text-classification/rt-polarity.pos": "pos", "text-classification/rt-polarity.neg": "neg"},
        {"rt-polaritydata/rt-polarity.pos": "pos", "rt-polaritydata/rt-polarity.neg": "neg"},
        {"rt-polarity.pos": "pos", "rt-polarity.neg": "neg"},
    ),
}
"""Files of one class each, as the collections are published; those without a folder are looked for in the user's."""


@dataclass(frozen=True)
class Text:
    """Sentences, in the order of the file, each with the name of its class; not yet counted."""

    sentences: Sequence[str]
    labels: Sequence[str]


def load_subj(root: Path, split: str, argument: str) -> Split:
    """Load subjectivity v1.0 (Pang and Lee 2004): the authors' counts of stems if they are there, else sentences.

    The counts (`zhai-text/subj.npz`) come divided 8,000 / 2,000 over 13,089 stems. Sentences are divided by one fixed
    draw, 80 % to train, and counted by their words as they are.

    Returns:
        (N, V) uint8 counts; `inputs()` divides them by 255, so a network that wants shares divides by the row's sum.

    Raises:
        UserError: A file is damaged.
    """
    return _official("subj", root, split)


def load_mr(root: Path, split: str, argument: str) -> Split:
    """Load sentence polarity v1.0 (Pang and Lee 2005): the authors' counts, 8,529 / 2,131 over 11,413 stems, or words.

    See `load_subj`.
    """
    return _official("mr", root, split)


def load(root: Path, split: str, argument: str) -> Split:
    """Load the user's own sentences.

    Args:
        root: Not used.
        split: "train" or "test".
        argument: A file of lines `label<TAB>text`, divided by one fixed draw into 80 % and 20 %, each class alike; a
            folder with two such files, train.txt and test.txt; or a folder with rt-polarity.pos and rt-polarity.neg, or
            with plot.tok.gt9.5000 and quote.tok.gt9.5000, one sentence a line.

    Returns:
        (N, V) uint8 counts of the training part's most frequent words, see `WORDS`; classes by name.

    Raises:
        UserError: There is no such file, or a line is not of its form: the message has its number.
    """
    parts = _own(Path(argument).expanduser())
    return _counted(parts, split, tuple(sorted(set(parts["train"].labels))), f"sentences:{argument}")


def words(reference: str, *, data_dir: str | Path = "") -> tuple[str, ...]:
    """Return the vocabulary of a data set, (V,) in the order of the inputs.

    Args:
        reference: "subj", "mr" or "sentences:PATH".
        data_dir: As in `iclr18cli.data.registry.open_split`.

    Raises:
        UserError: Its files are not there.
        ValueError: The data set holds no counts of words.
    """
    from iclr18cli.data.places import locate
    from iclr18cli.data.registry import find
    from iclr18cli.paths import data_roots

    if not holds_counts(reference):
        raise ValueError(f"{reference!r} holds no counts of words")
    spec, argument = find(reference)
    if not spec.files:
        return vocabulary(_own(Path(argument).expanduser())["train"].sentences)
    found = locate(spec, data_roots(data_dir))
    if found is None:
        raise UserError(f"Data set '{spec.name}' is not on this machine.", fix=f"iclr18 data show {spec.name}")
    counts = found[0] / _COUNTS[spec.name]
    if counts.is_file():
        return tuple(str(word) for word in read_arrays(counts, ["vocab"], dataset=spec.name)["vocab"])
    return vocabulary(_divided(_raw(spec.name, found[0]))["train"].sentences)


def holds_counts(reference: str) -> bool:
    """Say whether the inputs of a data set are counts of words: "subj", "mr", "sentences:PATH"."""
    return reference.partition(":")[0] in ("subj", "mr", "sentences")


def tokens(sentence: str) -> list[str]:
    """Return the words of a sentence in lower case: letters and digits, with apostrophes inside.

    Example:
        >>> tokens("It's so laddish , and 2nd-rate _ .")
        ["it's", 'so', 'laddish', 'and', '2nd', 'rate']
    """
    return _WORD.findall(sentence.lower())


def vocabulary(sentences: Iterable[str], *, limit: int = WORDS) -> tuple[str, ...]:
    """Return the most frequent words, the most frequent first, ties by alphabet."""
    counted = Counter(word for sentence in sentences for word in tokens(sentence))
    return tuple(sorted(counted, key=lambda word: (-counted[word], word))[:limit])


def counts(sentences: Sequence[str], known: Sequence[str]) -> NDArray[np.uint8]:
    """Return how often each known word is in each sentence, (N, V); more than 255 times count as 255."""
    place = {word: number for number, word in enumerate(known)}
    x_NV = np.zeros((len(sentences), len(known)), dtype=np.uint8)
    for row, sentence in zip(x_NV, sentences, strict=True):
        for word, count in Counter(tokens(sentence)).items():
            if word in place:
                row[place[word]] = min(count, 255)
    return x_NV


def read_counts(path: Path, split: str, *, dataset: str = "") -> tuple[NDArray[np.uint8], NDArray[np.int64], Sequence]:
    """Read a split of an npz file of sparse rows; nothing in it is executed.

    Keys: {train,test}_{data,indices,indptr,shape} (compressed rows), {train,test}_label, vocab, label_names.

    Returns:
        (N, V) uint8 counts, (N,) labels, names of the classes.

    Raises:
        UserError: An array is missing or they do not fit together.
    """
    keys = [f"{split}_{part}" for part in ("data", "indices", "indptr", "shape", "label")]
    arrays = read_arrays(path, [*keys, "vocab", "label_names"], dataset=dataset)
    data, indices, indptr, shape, label = (arrays[key] for key in keys)
    try:
        names = (arrays["vocab"], arrays["label_names"])
        if any(array.ndim != 1 for array in (data, indices, indptr, shape, label, *names)):
            raise ValueError("every array has one axis")
        if not np.issubdtype(shape.dtype, np.integer) or any(array.dtype.kind != "U" for array in names):
            raise ValueError("the shape must be whole numbers, words and names of classes text")
        N, V = (int(size) for size in shape)
        if len(arrays["vocab"]) != V or label.shape != (N,) or indptr.shape != (N + 1,) or N < 1:
            raise ValueError(f"{N} rows, {len(arrays['vocab'])} words, {len(label)} labels and {len(indptr)} ends "
                             f"do not fit together for the shape {N} x {V}")  # fmt: skip
        if N * V > LARGEST:
            raise ValueError(f"{N} x {V} counts do not fit into memory")
        if data.dtype != np.uint8 or not all(np.issubdtype(a.dtype, np.integer) for a in (indices, indptr, label)):
            raise ValueError("counts must be uint8, indices and labels whole numbers")
        ends = indptr.astype(np.int64)
        lengths = ends[1:] - ends[:-1]
        if indptr[0] != 0 or indptr[-1] != len(data) or len(data) != len(indices) or (lengths < 0).any():
            raise ValueError("the ends of the rows are not those of the counts")
        if len(indices) and not (indices.min() >= 0 and indices.max() < V):
            raise ValueError(f"a word's number lies outside 0 .. {V - 1}")
        if len(np.unique(np.repeat(np.arange(N), lengths) * V + indices.astype(np.int64))) < len(indices):
            raise ValueError("a word comes twice in a row")
        if int(label.max()) >= len(arrays["label_names"]) or int(label.min()) < 0:
            raise ValueError(f"a label lies outside 0 .. {len(arrays['label_names']) - 1}")
    except (ValueError, TypeError) as error:
        raise damaged(path, error, dataset=dataset, fix="Write the file again.") from error
    x_NV = np.zeros((N, V), dtype=np.uint8)
    x_NV[np.repeat(np.arange(N), lengths), indices] = data
    return x_NV, label.astype(np.int64), [str(name) for name in arrays["label_names"]]


def read_labelled(
    path: Path, separator: str = "\t", names: Mapping[str, str] | None = None, *, classes: int = 2
) -> Text:
    """Read lines of a label, a separator and a text; empty lines are skipped.

    Args:
        path: UTF-8, else Latin-1.
        separator: Between label and text.
        names: Label -> name of its class; None: any label is a name.
        classes: At least so many must come.

    Raises:
        UserError: A line has no label or no text.
    """
    sentences, labels = [], []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        label, found, sentence = line.strip("\r\n").partition(separator)
        label = label.strip()
        if not found or not label or not sentence.strip() or (names is not None and label not in names):
            form = "label, a tab, text" if separator == "\t" else f"{' or '.join(names or ())}, a space, text"
            raise damaged(path, f"line {number} is not of the form {form}: {line.strip()[:40]!r}",
                          fix=f"Mend or remove line {number}.")  # fmt: skip
        sentences.append(sentence)
        labels.append(label if names is None else names[label])
    if len(set(labels)) < classes:
        raise damaged(path, f"it holds {len(set(labels))} classes", fix=f"Give it sentences of {classes} or more.")
    return Text(sentences, labels)


def read_pair(folder: Path, files: Mapping[str, str]) -> Text:
    """Read files of one class each, a sentence a line; empty lines are skipped."""
    sentences, labels = [], []
    for name, label in files.items():
        here = [line for line in _lines(folder / name) if line.strip()]
        if not here:
            raise damaged(folder / name, "it holds no sentence", fix="Get the file again.")
        sentences += here
        labels += [label] * len(here)
    return Text(sentences, labels)


def _official(name: str, root: Path, split: str) -> Split:
    if (root / _COUNTS[name]).is_file():
        x_NV, y_N, classes = read_counts(root / _COUNTS[name], split, dataset=name)
        return Split(torch.from_numpy(x_NV), torch.from_numpy(y_N), tuple(classes), name, split)
    return _counted(_divided(_raw(name, root)), split, _CLASSES[name], name)


def _raw(name: str, root: Path) -> Text:
    if name in _LABELLED and (root / _LABELLED[name][0]).is_file():
        file, names = _LABELLED[name]
        return read_labelled(root / file, " ", names)
    return read_pair(root, next(pair for pair in _PAIRS[name] if all((root / file).is_file() for file in pair)))


def _own(path: Path) -> dict[str, Text]:
    """Return the training and the test part of the user's own file or folder."""
    if path.is_file():
        text = read_labelled(path)
        alone = [label for label, count in Counter(text.labels).items() if count == 1]
        if alone:
            raise UserError(
                f"Class '{alone[0]:.40}' of '{path}' has one sentence.",
                why="it cannot be in the training and in the test part",
                fix="is line 1 a header, or are the columns swapped? Lines are label, tab, text",
            )
        return _divided(text)
    if not path.is_dir():
        raise UserError(f"There is no file or folder '{path}'.", fix="Check the path after 'sentences:'.")
    if (path / "train.txt").is_file() and (path / "test.txt").is_file():
        return {
            part: read_labelled(path / f"{part}.txt", classes=2 if part == "train" else 1) for part in ("train", "test")
        }
    for pairs in _PAIRS.values():
        for pair in pairs:
            if all((path / file).is_file() for file in pair):
                return _divided(read_pair(path, pair))
    raise UserError(
        f"Folder '{path}' holds no labelled sentences.",
        why="looked for train.txt and test.txt, rt-polarity.pos and .neg, plot.tok.gt9.5000 and quote.tok.gt9.5000",
        fix="Write lines of label, tab, text into one file and name it: sentences:FILE.",
    )


def _divided(text: Text) -> dict[str, Text]:
    """Divide by one fixed draw, each class alike, in a fixed random order: the first n are a sample of all classes."""
    numbers = np.unique(np.asarray(text.labels), return_inverse=True)[1]
    random = np.random.RandomState(ORDER_SEED)
    return {
        part: Text([text.sentences[i] for i in order], [text.labels[i] for i in order])
        for part, order in ((part, random.permutation(index)) for part, index in stratified(numbers).items())
    }


def _counted(parts: Mapping[str, Text], split: str, classes: tuple[str, ...], name: str) -> Split:
    known, text = vocabulary(parts["train"].sentences), parts[split]
    if not known:
        raise UserError(f"The training part of '{name}' holds no word.", fix="Give it sentences.")
    if len(text.sentences) * len(known) > LARGEST:
        raise UserError(f"'{name}' does not fit into memory.", why=f"{len(text.sentences)} x {len(known)} counts",
                        fix="Give it fewer sentences.")  # fmt: skip
    odd = sorted(set(text.labels) - set(classes))
    if odd:
        raise UserError(f"The {split} part of '{name}' has a class that the training part lacks.", why=odd[0],
                        fix="Give both parts the same classes.")  # fmt: skip
    y_N = np.array([classes.index(label) for label in text.labels], dtype=np.int64)
    return Split(torch.from_numpy(counts(text.sentences, known)), torch.from_numpy(y_N), classes, name, split)


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        if b"\0" in content:
            raise damaged(path, "it holds zero bytes, as UTF-16 does", fix="Save it as UTF-8.")
        return content.decode("utf-8-sig").split("\n")  # Excel and others begin with a mark
    except UnicodeDecodeError:  # the collections of 2004 and 2005 are Latin-1, which reads any bytes
        return content.decode("latin-1").split("\n")
