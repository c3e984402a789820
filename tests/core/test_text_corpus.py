"""Vocabularies, corpora, pieces, perplexity, averaging, by counting and by closed forms."""

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from iclr18cli.errors import UserError
from iclr18cli.testing import run_cli
from iclr18cli.text.averaging import NonMonotoneAveraging
from iclr18cli.text.batching import columns, piece_lengths
from iclr18cli.text.corpus import open_corpus, open_text
from iclr18cli.text.perplexity import dynamic_losses, interval, perplexity, side_by_side, token_losses
from iclr18cli.text.recurrent import RecurrentLM
from iclr18cli.text.vocabulary import Vocabulary

DATA = os.environ.get("ICLR18_DATA")


def test_words_are_numbered_by_frequency_and_then_spelling():
    v = Vocabulary.of_words(["b", "a", "c", "a", "b", "<eos>", "d"], max_size=5)
    assert v.words == ("<unk>", "<eos>", "a", "b", "c")
    assert v.decode(v.encode(["c", "d", "a"])) == ["c", "<unk>", "a"]
    assert Vocabulary.of_words(["b", "a", "a"], min_count=2).words == ("<unk>", "<eos>", "a")


def test_vocabulary_survives_the_file_and_damage_is_told(tmp_path):
    v = Vocabulary.of_words(["é", "a"])
    v.save(tmp_path)
    assert Vocabulary.load(tmp_path).words == v.words
    for text in ("{}", "[1]", '["a"]', '["<unk>", "<eos>", "a", "a"]', "["):
        (tmp_path / "vocabulary.json").write_text(text)
        with pytest.raises(UserError, match="no vocabulary"):
            Vocabulary.load(tmp_path)


def test_lines_are_cut_at_their_ends_and_every_word_is_in_one_split(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("".join(f"w{n} x\n" for n in range(25)))
    words = [open_text(f"lines:{path}", split).words for split in ("train", "valid", "test")]
    assert sum(map(len, words)) == 75
    assert all(part[-1] == "<eos>" for part in words)
    assert [len(part) // 3 for part in words] == [20, 2, 3]
    folder = tmp_path / "f"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"{split} a a\n")
    corpus = open_corpus(f"lines:{folder}")
    assert corpus.vocabulary.words == ("<unk>", "<eos>", "a")
    assert corpus.valid.tolist() == [0, 2, 2, 1]
    with pytest.raises(UserError, match="no text"):
        open_text(f"lines:{tmp_path / 'none'}", "train")


@pytest.mark.skipif(not DATA, reason="needs the data folder")
def test_penn_treebank_has_the_published_counts():
    corpus = open_corpus("ptb")
    assert [len(corpus.train), len(corpus.valid), len(corpus.test)] == [929_589, 73_760, 82_430]
    assert len(corpus.vocabulary) == 10_000
    cut = open_corpus("ptb", limit=1000, limit_eval=50, max_words=20)
    assert (len(cut.train), len(cut.test), len(cut.vocabulary)) == (1000, 50, 20)


@pytest.mark.skipif(not DATA, reason="needs the data folder")
def test_wikitext_has_the_published_counts():
    path = Path(DATA) / "wikitext-2"
    assert len(open_text(f"lines:{path}", "test").words) == 245_569
    assert len(open_text(f"lines:{path}", "valid").words) == 217_646


def test_a_classification_set_is_no_text_and_python_docs_are_shown(cli):
    with pytest.raises(UserError, match="no text"):
        open_text("digits", "train")
    shown = run_cli("data", "show", "python-docs", "--json")
    assert shown.code == 0, shown.err
    assert shown.json["splits"]["train"]["tokens"] > 40_000


def test_columns_lie_side_by_side():
    assert columns(torch.arange(7), 2).tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(UserError, match="make no 4"):
        columns(torch.arange(7), 4)


def test_pieces_cover_a_column_whatever_their_lengths():
    assert piece_lengths(10, 4, vary=False, seed=0, epoch=0) == [4, 4, 2]
    drawn = [piece_lengths(2000, 70, vary=True, seed=0, epoch=epoch) for epoch in range(20)]
    assert all(sum(lengths) == 2000 for lengths in drawn)
    assert drawn[0] != drawn[1]
    assert drawn[0] == piece_lengths(2000, 70, vary=True, seed=0, epoch=0)
    inner = [length for lengths in drawn for length in lengths[:-1]]
    assert min(inner) >= 5
    assert max(inner) <= 80
    assert abs(sum(inner) / len(inner) - (0.95 * 70 + 0.05 * 35 - 0.5)) < 1.5


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_every_token_but_the_first_is_a_target_once(batch_size):
    x, y = side_by_side(torch.arange(24), batch_size)
    assert sorted(y[y >= 0].tolist()) == list(range(1, 24))
    assert (y[y >= 0] == x[y >= 0] + 1).all()


class Bigram(nn.Module):
    """Logits that depend on the token alone: perplexity in closed form, whatever the batches."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, x, state=None):
        return self.table[x], [torch.zeros(1)]


def test_perplexity_of_a_bigram_model_is_its_closed_form_for_every_batch_size():
    torch.manual_seed(0)
    table, tokens = torch.randn(5, 5), torch.randint(5, (301,))
    expected = -table.log_softmax(1)[tokens[:-1], tokens[1:]]
    for batch_size in (1, 3, 10):
        losses = token_losses(Bigram(table), tokens, torch.device("cpu"), batch_size=batch_size)
        assert torch.allclose(losses, expected, atol=1e-5)
    assert perplexity(losses) == pytest.approx(math.exp(float(expected.double().mean())), rel=1e-6)
    assert perplexity(torch.full((3,), 1e4)) == math.inf


def test_one_column_reads_a_text_as_one_in_pieces():
    torch.manual_seed(0)
    net, tokens = RecurrentLM(9, hidden=6).eval(), torch.randint(9, (300,))
    logits, _ = net(tokens[:-1, None])
    expected = nn.functional.cross_entropy(logits[:, 0], tokens[1:], reduction="none")
    found = token_losses(net, tokens, torch.device("cpu"), batch_size=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_dynamic_evaluation_learns_from_the_past_alone_and_leaves_the_net():
    torch.manual_seed(0)
    net, tokens = RecurrentLM(9, hidden=24), torch.arange(9).repeat(100)
    before, device = copy.deepcopy(net.state_dict()), torch.device("cpu")
    still = token_losses(net, tokens, device, batch_size=1)
    assert torch.allclose(dynamic_losses(net, tokens, device, rate=0.0), still, atol=1e-5)
    moved = dynamic_losses(net, tokens, device, rate=3.0)
    assert torch.allclose(moved[:5], still[:5], atol=1e-5)  # nothing had been learnt yet
    assert perplexity(moved[-100:]) < 0.5 * perplexity(still[-100:])
    assert torch.allclose(dynamic_losses(net, tokens, device, rate=0.5, decay=1.0), still, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_interval_covers_the_perplexity_of_independent_losses():
    torch.manual_seed(0)
    covered = 0
    for _ in range(200):
        losses = torch.empty(4000).exponential_()
        low, high, blocks, length = interval(losses, delta=0.1)
        covered += low <= math.e <= high
        assert blocks * length == 4000
    assert 165 <= covered <= 195  # 180 expected


def test_average_is_that_of_torch_asgd():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    sgd = torch.optim.SGD(ours.parameters(), lr=0.1)
    asgd = torch.optim.ASGD(theirs.parameters(), lr=0.1, t0=0, lambd=0)
    averaging, iterates = NonMonotoneAveraging(ours, nonmono=0), []
    for _ in range(7):
        x = torch.randn(4, 3)
        for net, optimizer in ((ours, sgd), (theirs, asgd)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        averaging.step()
        iterates.append(ours.weight.detach().clone())
    expected = torch.stack(iterates[1:]).mean(0)
    assert torch.allclose(averaging.averages[0], expected, atol=1e-6)
    assert torch.allclose(asgd.state[theirs.weight]["ax"], expected, atol=1e-6)
    with averaging.averaged():
        assert torch.allclose(ours.weight, expected, atol=1e-6)
    assert torch.equal(ours.weight, iterates[-1])
    again = NonMonotoneAveraging(ours, nonmono=5)
    again.load_state_dict(averaging.state_dict())
    again.settle()
    assert torch.allclose(ours.weight, expected, atol=1e-6)


def test_averaging_begins_when_validation_is_worse_than_all_but_the_last_epochs():
    averaging = NonMonotoneAveraging(nn.Linear(1, 1), nonmono=2)
    assert [averaging.validated(value) for value in (5.0, 3.0, 4.0, 2.9, 3.5)] == [False] * 4 + [True]
    assert averaging.active
    assert json.dumps(averaging.history)


def test_reader_carries_states_and_checkpoints_merge_the_columns_of_ranks():
    from types import SimpleNamespace

    from iclr18cli.text.batching import Reader

    passes = iter([(0, 0), (0, 1), (1, 0)])
    run = SimpleNamespace(
        device=torch.device("cpu"), seed=0, track_own=lambda **_: None, share=lambda part: part,
        passes=lambda counts: passes, world=SimpleNamespace(part=lambda n: slice(1, 2)),
    )  # fmt: skip
    reader = Reader(run, torch.arange(12), epochs=2, batch_size=2, bptt=3)
    seen = []
    for x, y in reader:
        seen.append((x[:, 0].tolist(), y[:, 1].tolist(), reader.state))
        reader.carry([torch.ones(1, 2, 3, requires_grad=True)])
    assert seen[0] == ([0, 1, 2], [7, 8, 9], None)
    assert seen[1][:2] == ([3, 4], [10, 11])
    assert not seen[1][2][0].requires_grad
    assert seen[2][2] is None  # a new pass begins
    halves = [{"state": [torch.full((1, 1, 3), float(rank))]} for rank in range(2)]
    reader.load_state_dict(reader.merge(halves))
    assert reader.state[0].tolist() == [[[1.0, 1.0, 1.0]]]
    assert reader.merge([{"state": None}, halves[0]]) == {"state": None}
