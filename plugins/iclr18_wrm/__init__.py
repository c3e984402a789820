"""WRM: certifying some distributional robustness with principled adversarial training (Sinha, Namkoong, Duchi 2018)."""

from typing import Any

from iclr18cli.plugin import Command, ModelSpec, Technique, hookimpl

iclr18_api = 1


def command(config: str, run: str, summary: str, **kind: Any) -> Command:
    """Return a command whose config class and function live in this package."""
    return Command(config=f"iclr18_wrm.config:{config}", run=f"iclr18_wrm.{run}", summary=summary, **kind)


# fmt: off
COMMANDS = {
    "train": command("TrainConfig", "train:train", "Train with WRM, or with ERM, FGM, IFGM, PGM beside it"),
    "eval": command("EvalConfig", "evaluate:evaluate", "Measure clean error, adversarial loss, rho_hat, phi, concavity",
                    takes="run", gives="metrics", ranks=True),
    "certify": command("CertifyConfig", "certificate:certify", "Bound the worst expected loss; Figure 2",
                       takes="run", gives="certificates", ranks=True),
    "boundary": command("BoundaryConfig", "figures:boundary", "Draw decision boundaries on rings; Figure 1"),
    "curves": command("CurvesConfig", "figures:curves", "Draw error against budget, rho against 1/gamma; Figures 3, 4a",
                      takes="runs", gives="report"),
    "cartpole": command("CartpoleConfig", "cartpole:cartpole", "Robust Q-learning on the cart-pole; Table 1"),
}
MODELS = (
    ModelSpec(name="wrm/elu-cnn", build="iclr18_wrm.model:elu_cnn", task="classify", input_shape=(1, 28, 28),
              summary="The paper's MNIST network: three convolutions, one dense layer, ELU"),
    ModelSpec(name="wrm/2-4-2", build="iclr18_wrm.model:two_four_two", task="classify", input_shape=(2,),
              summary="The paper's network for the synthetic task: 2-4-2 and an output layer"),
)
TECHNIQUE = Technique(name="wrm", summary="Robust training by penalised Wasserstein ascent", paper="arXiv:1710.10571",
                      authors="Sinha, Namkoong, Duchi", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
iclr18_models = hookimpl(lambda: MODELS, specname="iclr18_models")
