"""A whole network in multi-bit codes.

`train_quantised_(net, config)` swaps the layers of a network for ones that hold float weights and compute with
quantised ones; `quantise_(net, config)` for ones that hold codes alone. `multi_bit` makes empty packed layers: the
transform "multi-bit" of a model card, by which a compressed run is opened again.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli.compression.layers import (
    MultiBitConfig,
    Packed,
    PackedEmbedding,
    PackedLinear,
    QuantisedEmbedding,
    QuantisedLinear,
)
from iclr18cli.compression.recurrent import PackedRecurrent, QuantisedRecurrent

TRANSFORM = "multi-bit"
PACKED: dict[type[nn.Module], Any] = {
    nn.Embedding: PackedEmbedding, nn.Linear: PackedLinear, nn.LSTM: PackedRecurrent, nn.GRU: PackedRecurrent,
}  # fmt: skip
QUANTISED: dict[type[nn.Module], Any] = {
    nn.Embedding: QuantisedEmbedding, nn.Linear: QuantisedLinear,
    nn.LSTM: QuantisedRecurrent, nn.GRU: QuantisedRecurrent,
}  # fmt: skip


def multi_bit(module: nn.Module, **config: Any) -> nn.Module:
    """Swap every embedding, linear layer, LSTM and GRU for an empty packed one, in place: `apply` of the transform."""
    return swap(module, PACKED, MultiBitConfig(**config))


def transform(config: MultiBitConfig) -> dict[str, Any]:
    """Return what a model card says of a network coded with a config."""
    return {"name": TRANSFORM, "kwargs": asdict(config)}


def train_quantised_(module: nn.Module, config: MultiBitConfig) -> nn.Module:
    """Swap every embedding, linear layer, LSTM and GRU for one that trains through the quantiser, in place.

    The float layers stay inside, with their parameters, so that tied weights stay tied.
    """
    return swap(module, QUANTISED, config)


def trained_float_(module: nn.Module) -> nn.Module:
    """Undo `train_quantised_`: put the float layers with their trained parameters back, in place."""
    for name, child in list(module.named_children()):
        if type(child) in QUANTISED.values():
            setattr(module, name, child.layer)
        else:
            trained_float_(child)
    return module


@torch.no_grad()
def quantise_(module: nn.Module, config: MultiBitConfig) -> nn.Module:
    """Code every embedding, linear layer, LSTM and GRU of a float network, in place. Tied matrices become one."""
    coded: dict[int, Packed] = {}

    def load(parent: nn.Module, name: str, packed: Packed, weight: Tensor) -> None:
        if weight.data_ptr() in coded:
            setattr(parent, name, coded[weight.data_ptr()])
        else:
            packed.load(weight, config)
            coded[weight.data_ptr()] = packed

    floats = {name: layer for name, layer in module.named_modules() if type(layer) in PACKED}
    multi_bit(module, **asdict(config))
    for name, layer in floats.items():
        packed = module.get_submodule(name)
        if isinstance(layer, nn.RNNBase):
            packed.load(layer)  # type: ignore[operator]
        else:
            load(packed, "weight", packed.weight, layer.weight)  # type: ignore[arg-type]
    return module


def swap(module: nn.Module, layers: dict[type[nn.Module], Any], config: MultiBitConfig) -> nn.Module:
    """Replace layers in place, keeping device, and return the module."""
    for name, child in list(module.named_children()):
        if type(child) in layers:
            made = layers[type(child)](child, config).train(child.training)
            if isinstance(child, nn.RNNBase):  # of recurrent layers in a list, those after the first read states
                made.coded_inputs = isinstance(module, nn.ModuleList) and name != "0"
            setattr(module, name, made.to(next(child.parameters()).device))
        elif type(child) not in layers.values():
            swap(child, layers, config)
    return module


def memory(module: nn.Module) -> dict[str, int]:
    """Return the bytes of a packed network: `packed` as stored, `float32` of the same matrices, `rest` uncoded."""
    packed = [part for part in module.modules() if isinstance(part, Packed)]
    coded = {id(buffer) for part in packed for buffer in part.buffers()}
    rest = [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in coded]
    return {
        "packed": sum(part.codes.bytes for part in packed),
        "float32": sum(4 * part.length * len(part.alpha) for part in packed),
        "rest": sum(tensor.numel() * tensor.element_size() for tensor in rest),
    }
