import sys

import pytest
import torch
from torch import nn

from iclr18cli.compression import kernels
from iclr18cli.compression.binary_codes import alternating
from iclr18cli.compression.kernels import multiply, quantise_vectors
from iclr18cli.compression.layers import MultiBitConfig, Packed, PackedLinear
from iclr18cli.compression.methods import code_rows
from iclr18cli.compression.networks import memory, multi_bit, quantise_, train_quantised_, transform
from iclr18cli.compression.packing import (
    code_products,
    pack,
    pack_bits,
    packed_bytes,
    packed_product,
    popcount,
    unpack_bits,
)
from iclr18cli.compression.recurrent import PackedRecurrent, QuantisedRecurrent, biases, unroll
from iclr18cli.compression.straight_through import clip_, straight_through
from iclr18cli.errors import UserError

WIDTHS = (1, 5, 63, 64, 65, 300, 1024)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("N", WIDTHS)
def test_packing_comes_back_and_fills_up_with_zeros(N):
    bits = random(3, 2, N) > 0
    words = pack_bits(bits)
    assert words.shape == (3, 2, -(-N // 64))
    assert torch.equal(unpack_bits(words, N).bool(), bits)
    assert not unpack_bits(words, 64 * words.shape[-1])[..., N:].any()


def test_popcount_agrees_with_python_on_all_kinds_of_words():
    words = [*torch.randint(-(2**63), 2**63 - 1, (200,)).tolist(), 0, -1, 1, -(2**63), 2**63 - 1]
    assert popcount(torch.tensor(words)).tolist() == [(w & (2**64 - 1)).bit_count() for w in words]


@pytest.mark.parametrize("N", WIDTHS)
def test_exclusive_or_and_bit_count_give_the_inner_product_of_codes(N):
    left, right = random(4, 3, N).sign(), random(2, 2, N, seed=1).sign()
    found = code_products(pack_bits(left > 0), pack_bits(right > 0), N)
    assert torch.equal(found.float(), torch.einsum("mkn,bcn->mkbc", left, right))


@pytest.mark.parametrize("kernel", ["torch", "numba"])
@pytest.mark.parametrize("N", WIDTHS)
@pytest.mark.parametrize(("K", "C"), [(1, 1), (2, 2), (3, 3), (2, 3), (4, 2)])
def test_packed_product_is_the_dense_product_of_the_dequantised(kernel, N, K, C):
    if kernel == "numba":
        pytest.importorskip("numba")
    left, right = pack(code_rows(random(37, N), K)), pack(code_rows(random(3, N, seed=1), C))
    dense = left.unpacked().dense().double() @ right.unpacked().dense().double().T
    found = multiply(left, right, kernel=kernel)
    assert (found - dense).abs().max() <= 1e-5 * dense.abs().max()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("N", [1, 5, 64, 100, 300, 1024])
def test_compiled_quantiser_makes_the_codes_of_the_reference(bits, N):
    pytest.importorskip("numba")
    x = random(8, N, seed=bits)
    found, expected = quantise_vectors(x, bits), pack(alternating(x, bits))
    assert torch.allclose(found.unpacked().dense(), expected.unpacked().dense(), atol=1e-5)


def test_threads_give_the_numbers_of_one_thread(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(kernels, "THREADS_FROM_WORDS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for bits in (2, 3, 4):
        left, right = pack(code_rows(random(64, 128), bits)), pack(code_rows(random(1, 128, seed=1), bits))
        assert torch.allclose(multiply(left, right), packed_product(left, right), atol=1e-4)


def test_gates_of_the_kernel_are_those_of_torch_to_single_precision():
    compiled = pytest.importorskip("iclr18cli.compression.numba_kernels")
    pre, zero, c = 6 * random(4 * 300), torch.zeros(4 * 300), random(300, seed=1)
    i, f, g, o = pre.double().chunk(4)
    expected_c = f.sigmoid() * c.double() + i.sigmoid() * g.tanh()
    expected_h = o.sigmoid() * expected_c.tanh()
    h = torch.empty(300)
    compiled.gates(pre.numpy(), zero.numpy(), zero.numpy(), c.numpy(), h.numpy())
    assert (c - expected_c).abs().max() < 2e-6
    assert (h - expected_h).abs().max() < 2e-6


def test_without_numba_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert kernels.choose(torch.device("cpu")) == "torch"
    with pytest.raises(UserError) as caught:
        kernels.numba_kernels()
    assert "pip install" in caught.value.fix
    x = random(2, 70)
    assert torch.equal(quantise_vectors(x, 2).words_MKW, pack(alternating(x, 2)).words_MKW)


def test_numba_is_not_imported_before_it_is_used():
    import subprocess

    program = "import sys, iclr18cli.compression.networks; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("N", WIDTHS)
def test_triton_product_is_the_reference(N):
    pytest.importorskip("triton")
    left, right = pack(code_rows(random(37, N), 3)), pack(code_rows(random(2, N, seed=1), 2))
    on_gpu = [part._replace(alpha_MK=part.alpha_MK.cuda(), words_MKW=part.words_MKW.cuda()) for part in (left, right)]
    assert torch.allclose(multiply(*on_gpu, kernel="triton").cpu(), packed_product(left, right), rtol=1e-5, atol=1e-4)


def test_packed_bytes_are_counted_exactly():
    for N in WIDTHS:
        packed = pack(code_rows(random(7, N), 3))
        stored = packed.words_MKW.numpy().nbytes + packed.alpha_MK.numpy().nbytes
        assert packed.bytes == stored == packed_bytes(7, N, 3)
    assert 4 * 1024 / packed_bytes(1, 1024, 2) == pytest.approx(
        15.5, abs=0.06
    )  # the card's figure, 32 n / (k n + 32 k)


def test_gradient_passes_straight_through_the_quantiser():
    w, x = random(4, 10).requires_grad_(), random(10, seed=1)
    config = MultiBitConfig(weight_bits=2)
    quantised = config.weights(w)
    assert torch.equal(quantised, code_rows(w.detach(), 2).dense())
    ((quantised @ x) ** 2).sum().backward()
    leaf = quantised.detach().requires_grad_()
    ((leaf @ x) ** 2).sum().backward()
    assert torch.equal(w.grad, leaf.grad)
    assert torch.equal(straight_through(w, torch.zeros_like(w)), torch.zeros_like(w))


def test_clip_keeps_weights_in_the_box():
    layer = nn.Linear(5, 5)
    with torch.no_grad():
        layer.weight.mul_(100)
        layer.bias.fill_(3.0)
    clip_(layer)
    assert layer.weight.abs().max() == 1
    assert (layer.bias == 3).all()


class Language(nn.Module):
    def __init__(self, layers=2, tied=False, vocabulary=50, hidden=70):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.recurrent = nn.LSTM(hidden, hidden, layers)
        self.decoder = nn.Linear(hidden, vocabulary)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, token, state=None):
        y, state = self.recurrent(self.embedding(token), state)
        return self.decoder(y), state


def made(**kwargs):
    torch.manual_seed(0)
    return Language(**kwargs).eval()


def test_layers_trained_through_the_quantiser_compute_what_packed_ones_do():
    token = torch.randint(0, 50, (6, 3), generator=torch.Generator().manual_seed(1))
    for method in ("alternating", "greedy", "uniform"):
        config = MultiBitConfig(weight_bits=2, activation_bits=3, method=method)
        a, state_a = train_quantised_(made(), config)(token)
        b, state_b = quantise_(made(), config)(token)
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(state_a[1], state_b[1], atol=1e-5)


def test_kernel_and_float_emulation_agree_over_a_sequence():
    pytest.importorskip("numba")
    net, token = quantise_(made(), MultiBitConfig(weight_bits=2, activation_bits=2)), torch.arange(12)[:, None]
    emulated, _ = net(token)
    with torch.no_grad():
        computed, _ = net(token)
    assert (computed - emulated).abs().max() <= 1e-5 * emulated.abs().max()


def test_many_bits_come_close_to_the_float_network():
    token = torch.arange(12)[:, None]
    with torch.no_grad():
        exact, _ = made()(token)
        errors = []
        for bits in (2, 3, 4, 6):
            config = MultiBitConfig(weight_bits=bits, activation_bits=bits, iterations=20)
            errors.append(float((quantise_(made(), config)(token)[0] - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


def test_empty_packed_network_takes_the_weights_of_a_coded_one():
    config = MultiBitConfig(weight_bits=3, activation_bits=2)
    coded = quantise_(made(), config)
    card = transform(config)
    rebuilt = multi_bit(made(), **card["kwargs"])
    rebuilt.load_state_dict(coded.state_dict())
    token = torch.arange(4)[:, None]
    assert torch.equal(rebuilt(token)[0], coded(token)[0])
    assert not any(
        tensor.is_floating_point() and tensor.dim() == 2 and tensor.shape[1] > 3
        for tensor in coded.state_dict().values()
    )


def test_tied_matrices_are_coded_once():
    net = quantise_(made(tied=True), MultiBitConfig())
    assert net.decoder.weight is net.embedding.weight
    size = memory(net)
    matrices = 4 * (50 * 70 + 4 * 4 * 70 * 70)
    assert size["float32"] == matrices
    assert size["packed"] == packed_bytes(50 + 4 * 280, 70, 2)


def test_gradients_reach_every_float_weight_of_a_quantised_network():
    net = train_quantised_(made(tied=True), MultiBitConfig())
    net(torch.arange(6)[:, None])[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_other_kinds_of_lstm_are_refused():
    for layer in (nn.LSTM(3, 4, bidirectional=True), nn.LSTM(3, 4, batch_first=True), nn.LSTM(3, 4, proj_size=2)):
        with pytest.raises(ValueError, match="only one-way"):
            PackedRecurrent(layer, MultiBitConfig())
    assert PackedLinear(nn.Linear(3, 4, bias=False), MultiBitConfig())(torch.ones(1, 3)).shape == (1, 4)


def test_compiled_cell_follows_the_float_emulation_of_a_whole_sequence():
    pytest.importorskip("numba")
    from iclr18cli.compression.cells import FLOAT, packed_sequence, sequences

    torch.manual_seed(0)
    layer, x = nn.LSTM(100, 100).requires_grad_(False), torch.randn(8, 100)
    for bits in (2, 3):
        run, size = packed_sequence(layer, x, bits)
        assert size == 2 * packed_bytes(400, 100, bits)
        config = MultiBitConfig(weight_bits=bits, activation_bits=bits)
        w, u = (config.weights(w) for w in (layer.weight_ih_l0, layer.weight_hh_l0))
        part = (w, lambda h, u=u, config=config: nn.functional.linear(config.activations(h), u), *biases(layer, 0))
        expected, _ = unroll(config.weights(x)[:, None], None, [part], config, mode="LSTM")
        assert (run() - expected[-1, 0]).abs().max() < 1e-5
    runners, _ = sequences(64, 5, bits=())
    results = [runners[name]() for name in FLOAT]
    assert all(torch.allclose(result, results[0], atol=1e-5) for result in results)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bias", [True, False])
def test_unrolled_layers_with_float_weights_are_those_of_torch(kind, bias):
    torch.manual_seed(0)
    layer, x = kind(5, 7, num_layers=2, bias=bias).double().requires_grad_(False), torch.randn(6, 3, 5).double()
    config = MultiBitConfig(activation_bits=0)
    parts = [
        (getattr(layer, f"weight_ih_l{n}"), lambda h, n=n: h @ getattr(layer, f"weight_hh_l{n}").T, *biases(layer, n))
        for n in range(2)
    ]
    expected, state = layer(x)
    found, after = unroll(x, None, parts, config, mode=layer.mode)
    assert torch.allclose(found, expected, atol=1e-12)
    pairs = zip(after, state, strict=True) if kind is nn.LSTM else [(after, state)]
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in pairs)
    again, _ = unroll(x, state, parts, config, mode=layer.mode)
    assert torch.allclose(again, layer(x, state)[0], atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_recurrent_layer_computes_what_the_quantised_one_does(kind):
    torch.manual_seed(0)
    layer, x, config = kind(70, 70).requires_grad_(False), torch.randn(5, 1, 70), MultiBitConfig()
    packed = PackedRecurrent(layer, config)
    packed.load(layer)
    with torch.no_grad():
        assert torch.allclose(packed(x)[0], QuantisedRecurrent(layer, config)(x)[0], atol=1e-5)


def test_layers_after_the_first_code_the_states_they_read():
    torch.manual_seed(0)
    config, stack = MultiBitConfig(weight_bits=2, activation_bits=1), nn.Module()
    stack.layers = nn.ModuleList([nn.LSTM(8, 8), nn.LSTM(8, 8)])
    quantise_(stack, config)
    assert [layer.coded_inputs for layer in stack.layers] == [False, True]
    x, one = torch.randn(1, 1, 8), stack.layers[1]
    assert torch.allclose(one(x)[0], one(config.activations(x))[0], atol=1e-6)
    assert not torch.allclose(stack.layers[0](x)[0], stack.layers[0](config.activations(x))[0], atol=1e-3)


@pytest.mark.parametrize(("rows", "length", "bits"), [(8, 70, 2), (8, 70, 8), (1100, 250, 6)])
def test_product_is_the_float_emulation_whichever_way_its_shape_takes(rows, length, bits):
    pytest.importorskip("numba")
    torch.manual_seed(0)
    part, config = Packed(rows, length, bits), MultiBitConfig(weight_bits=bits, activation_bits=bits)
    part.load(torch.randn(rows, length), config)
    assert part.packed_pays(config) is (bits <= 4 or rows == 8)
    x = torch.randn(1, length)
    with torch.no_grad():
        expected = quantise_vectors(x, bits).unpacked().dense() @ part.dense().T
        found = part.product(x, config)
        assert torch.equal(found, part.product(x, config, part.dense()))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
