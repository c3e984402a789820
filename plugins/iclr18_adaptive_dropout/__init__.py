"""Adaptive dropout with Rademacher complexity regularisation (Zhai, Wang 2018)."""

from typing import Any

from iclr18cli.plugin import Command, ModelSpec, Technique, hookimpl

iclr18_api = 1


def command(config: str, run: str, summary: str, **kind: Any) -> Command:
    """Return a command whose config class and function live in this package."""
    package = "iclr18_adaptive_dropout"
    return Command(config=f"{package}.config:{config}", run=f"{package}.{run}", summary=summary, **kind)


def model(name: str, summary: str, *input_shape: int) -> ModelSpec:
    """Return a network whose builder has its name."""
    build = f"iclr18_adaptive_dropout.model:{name}"
    return ModelSpec(
        name=f"adaptive-dropout/{name}", build=build, task="classify", summary=summary, input_shape=input_shape
    )


# fmt: off
COMMANDS = {
    "train": command("TrainConfig", "train:train", "Learn weights and retain rates in turns; fixed rates, no dropout"),
    "eval": command("EvalConfig", "evaluate:evaluate", "Accuracy, with the rates and with sampled masks",
                    takes="run", gives="metrics"),
    "rates": command("RatesConfig", "rates:rates", "Draw and list the learnt rates; which units can be cut",
                     takes="run", gives="report"),
    "certify": command("CertifyConfig", "certificate:certify", "The Rademacher bound beside the measured gap",
                       takes="run", gives="certificates"),
}
MODELS = (model("mlp", "Dense layers, a retain rate for every input and hidden unit", 1, 8, 8),
          model("conv", "5x5 convolutions with 3x3 max-pooling, dense layers, a rate for every unit", 3, 32, 32))
TECHNIQUE = Technique(name="adaptive-dropout", summary="Learnt dropout rates, Rademacher regularisation",
                      paper="OpenReview S1uxsye0Z", authors="Zhai, Wang", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
iclr18_models = hookimpl(lambda: MODELS, specname="iclr18_models")
