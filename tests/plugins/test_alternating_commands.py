"""The `alternating` commands from end to end, on the text that ships with Python."""

import pytest
import torch

from iclr18cli.models.card import open_model, read_card
from iclr18cli.testing import run_cli

SMALL = ("--hidden", "24", "--epochs", "1", "--limit", "3000", "--limit-eval", "2000", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alternating") / "float"
    ended = run_cli("alternating", "train", "--bits-weights", "0", "--bits-activations", "0", *SMALL, "--out", folder)
    assert ended.code == 0, ended.err
    return folder


def quantised(source, folder, *options):
    ended = run_cli("alternating", "quantize", source, *options, "--device", "cpu", "--limit", "2000", "--json",
                    "--quiet", "--out", folder)  # fmt: skip
    assert ended.code == 0, ended.err
    return ended.json["metrics"]


def test_methods_order_by_error_as_in_table_one(floats, tmp_path):
    error = {
        (method, bits): quantised(
            floats, tmp_path / f"{method}{bits}", "--method", method, "--bits-weights", str(bits)
        )["relative_mse"]
        for bits in (2, 3)
        for method in ("uniform", "greedy", "refined", "alternating")
    }
    for bits in (2, 3):
        assert error["alternating", bits] < error["refined", bits] < error["greedy", bits] < error["uniform", bits]
    for method in ("uniform", "greedy", "refined", "alternating"):
        assert error[method, 3] < error[method, 2]


def test_quantised_run_holds_codes_and_no_float_matrix(floats, tmp_path):
    quantised(floats, tmp_path / "q")
    net, card = open_model(tmp_path / "q")
    assert card.transforms[0]["name"] == "multi-bit"
    assert all(
        tensor.dtype == torch.int64 or tensor.shape[-1] == 2 or tensor.dim() == 1
        for tensor in net.state_dict().values()
    )
    assert (tmp_path / "q" / "model.safetensors").stat().st_size < (floats / "model.safetensors").stat().st_size / 3
    assert read_card(floats).transforms == ()


def test_training_from_a_float_run_starts_at_its_weights(floats, tmp_path):
    ended = run_cli("alternating", "train", "--start", floats, *SMALL, "--learning-rate", "1e-9", "--bits-weights", "6",
                    "--bits-activations", "0", "--iterations", "10", "--json", "--out", tmp_path / "t")  # fmt: skip
    assert ended.code == 0, ended.err
    before = run_cli(
        "alternating", "eval", floats, "--limit", "2000", "--batch-size", "10", "--device", "cpu", "--json", "--quiet"
    ).json["metrics"]["perplexity"]
    assert ended.json["metrics"]["test_perplexity"] == pytest.approx(before, rel=0.02)


@pytest.mark.parametrize(
    ("options", "code"), [(("--method", "exact", "--bits-weights", "3"), 2), (("--bits-weights", "9"), 2)]
)
def test_settings_that_contradict_each_other_are_refused(floats, tmp_path, options, code):
    assert (
        run_cli("alternating", "quantize", floats, *options, "--device", "cpu", "--out", tmp_path / "no").code == code
    )


def test_a_quantised_run_is_not_quantised_again_and_a_float_run_not_certified(floats, tmp_path):
    quantised(floats, tmp_path / "q")
    again = run_cli("alternating", "quantize", tmp_path / "q", "--device", "cpu", "--out", tmp_path / "qq")
    assert again.code == 3
    assert "quantised already" in again.err
    assert run_cli("alternating", "certify", floats, "--device", "cpu").code == 3


def test_bench_compares_packed_cells_with_float_ones():
    pytest.importorskip("numba")
    ended = run_cli("alternating", "bench", "--preset", "smoke", "--device", "cpu", "--json", "--quiet")
    assert ended.code == 0, ended.err
    assert "packed 2/2" in ended.out
    assert "float32 mv" in ended.out
