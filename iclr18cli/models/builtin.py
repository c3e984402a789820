"""The networks of the core, as records. No torch here: listings and name checks read this file."""

from __future__ import annotations

from iclr18cli.plugin import ModelSpec

BUILTIN: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="small-cnn",
        build="iclr18cli.models.vision:small_cnn",
        task="classify",
        summary="Three 3x3 convolutions, no max-pool: smooth with a smooth activation",
        input_shape=(1, 8, 8),
    ),
    ModelSpec(
        name="mlp",
        build="iclr18cli.models.vision:mlp",
        task="classify",
        summary="Dense layers on inputs of any shape",
        input_shape=(1, 8, 8),
    ),
    ModelSpec(
        name="lenet5",
        build="iclr18cli.models.vision:lenet5",
        task="classify",
        summary="LeNet-5 for 28x28 images (LeCun et al. 1998)",
        input_shape=(1, 28, 28),
    ),
    ModelSpec(
        name="resnet20",
        build="iclr18cli.models.vision:resnet20",
        task="classify",
        summary="ResNet-20 for CIFAR, parameter-free shortcuts (He et al. 2016)",
        input_shape=(3, 32, 32),
    ),
    ModelSpec(
        name="resnet",
        build="iclr18cli.models.vision:resnet",
        task="classify",
        summary="ResNet of any depth 6n + 2 for CIFAR, with dropout between convolutions if asked",
        input_shape=(3, 32, 32),
    ),
    ModelSpec(
        name="recurrent-lm",
        build="iclr18cli.text.recurrent:RecurrentLM",
        task="language",
        summary="Language model: embedding, LSTM or GRU layers, decoder; every dropout of AWD-LSTM",
    ),
)
