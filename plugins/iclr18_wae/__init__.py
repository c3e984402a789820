"""WAE: Wasserstein auto-encoders (Tolstikhin, Bousquet, Gelly, Schoelkopf, ICLR 2018)."""

from typing import Any

from iclr18cli.plugin import Command, ModelSpec, Technique, hookimpl

iclr18_api = 1


def command(config: str, run: str, summary: str, **kind: Any) -> Command:
    """Return a command whose config class and function live in this package."""
    return Command(config=f"iclr18_wae.config:{config}", run=f"iclr18_wae.{run}", summary=summary, **kind)


# fmt: off
COMMANDS = {
    "train": command("TrainConfig", "train:train", "Train WAE-MMD or WAE-GAN, or AE, VAE, AAE beside them"),
    "eval": command("EvalConfig", "evaluate:evaluate", "Measure reconstructions, codes against the prior, samples",
                    takes="run", gives="metrics"),
    "certify": command("CertifyConfig", "certificate:certify", "Test codes against the prior; bound MMD, Lipschitz",
                       takes="run", gives="certificates"),
    "sample": command("SampleConfig", "figures:sample", "Draw samples from the prior as a grid",
                      takes="run", gives="report"),
    "interpolate": command("InterpolateConfig", "figures:interpolate", "Walk between the codes of test images",
                           takes="run", gives="report"),
    "attack": command("AttackConfig", "attack:attack", "Perturb images until reconstructions or codes go astray",
                      takes="run", gives="metrics"),
}
MODELS = (
    ModelSpec(name="wae/conv", build="iclr18_wae.model:conv", task="generate", input_shape=(1, 28, 28),
              summary="The paper's convolutional auto-encoder at any width"),
    ModelSpec(name="wae/mlp", build="iclr18_wae.model:mlp", task="generate", input_shape=(1, 8, 8),
              summary="Dense auto-encoder on inputs of any shape; takes norm caps"),
)
TECHNIQUE = Technique(name="wae", summary="Wasserstein auto-encoders", paper="arXiv:1711.01558",
                      authors="Tolstikhin, Bousquet, Gelly, Schoelkopf", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
iclr18_models = hookimpl(lambda: MODELS, specname="iclr18_models")
