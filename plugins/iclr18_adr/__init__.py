"""ADR: adversarial dropout regularization for unsupervised domain adaptation (Saito, Ushiku, Harada, Saenko 2018)."""

from typing import Any

from iclr18cli.plugin import Command, ModelSpec, Technique, hookimpl

iclr18_api = 1


def command(config: str, run: str, summary: str, **kind: Any) -> Command:
    """Return a command whose config class and function live in this package."""
    return Command(config=f"iclr18_adr.config:{config}", run=f"iclr18_adr.{run}", summary=summary, **kind)


def model(name: str, summary: str, *input_shape: int) -> ModelSpec:
    """Return a network whose builder has its name."""
    build = f"iclr18_adr.model:{name}"
    return ModelSpec(name=f"adr/{name}", build=build, task="classify", summary=summary, input_shape=input_shape)


# fmt: off
COMMANDS = {
    "train": command("TrainConfig", "train:train", "Adapt to a target without labels; ENT, MCD, DANN, source-only"),
    "eval": command("EvalConfig", "evaluate:evaluate", "Accuracy of C and C' on target and source, by class",
                    takes="run", gives="metrics"),
    "certify": command("CertifyConfig", "certificate:certify", "Bound target accuracy; agreement of critics; smoothing",
                       takes="run", gives="certificates"),
    "features": command("FeaturesConfig", "figures:features", "Draw features of runs", takes="runs", gives="report"),
}
MODELS = (
    model("small", "Two 3x3 convolutions and a dense head with dropout, for 8x8 digits", 1, 8, 8),
    model("usps", "The authors' network for MNIST and USPS: 5x5 convolutions 20-50, dense 500", 1, 28, 28),
    model("svhn", "The authors' network for SVHN: 5x5 convolutions 64-64-128, dense 3072-2048", 3, 32, 32),
    model("residual", "Residual features, He et al. (2016), and a dense head with dropout, for photographs", 3, 64, 64),
)
TECHNIQUE = Technique(name="adr", summary="Domain adaptation by adversarial dropout", paper="arXiv:1711.01575",
                      authors="Saito, Ushiku, Harada, Saenko", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
iclr18_models = hookimpl(lambda: MODELS, specname="iclr18_models")
