"""SN-GAN: spectral normalisation (Miyato, Kataoka, Koyama, Yoshida, ICLR 2018)."""

from typing import Any

from iclr18cli.plugin import Command, ModelSpec, Technique, hookimpl

iclr18_api = 1


def command(config: str, run: str, summary: str, **kind: Any) -> Command:
    """Return a command whose config class and function live in this package."""
    return Command(config=f"iclr18_sngan.config:{config}", run=f"iclr18_sngan.{run}", summary=summary, **kind)


# fmt: off
COMMANDS = {
    "train": command("TrainConfig", "train:train", "Train a GAN whose critic is normalised, or a baseline"),
    "eval": command("EvalConfig", "evaluate:evaluate", "Measure samples, collapse, and the critic's gradients",
                    takes="run", gives="metrics"),
    "certify": command("CertifyConfig", "certificate:certify", "Bound the critic's Lipschitz constant; reshape's gap",
                       takes="run", gives="certificates"),
    "sample": command("SampleConfig", "figures:sample", "Draw samples as a grid, a row per class where there are any",
                      takes="run", gives="report"),
}
MODELS = (
    ModelSpec(name="sngan/dcgan", build="iclr18_sngan.model:dcgan", task="generate", input_shape=(1, 28, 28),
              summary="The paper's standard CNN at any width and size"),
    ModelSpec(name="sngan/resnet", build="iclr18_sngan.residual:resnet", task="generate", input_shape=(3, 32, 32),
              summary="The paper's residual networks"),
)
TECHNIQUE = Technique(name="sngan", summary="Spectral normalisation for GANs", paper="arXiv:1802.05957",
                      authors="Miyato, Kataoka, Koyama, Yoshida", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
iclr18_models = hookimpl(lambda: MODELS, specname="iclr18_models")
