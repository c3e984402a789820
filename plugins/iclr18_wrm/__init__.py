"""WRM: certifying some distributional robustness with principled adversarial training (Sinha, Namkoong, Duchi 2018)."""

from iclr18cli.plugin import Command, ModelSpec, Technique, hookimpl

iclr18_api = 1


@hookimpl
def iclr18_techniques():
    """Offer the technique `wrm`."""
    config, code = "iclr18_wrm.config", "iclr18_wrm"
    commands = {
        "train": Command(
            config=f"{config}:TrainConfig",
            run=f"{code}.train:train",
            summary="Train with WRM, or with ERM, FGM, IFGM, PGM beside it",
        ),
        "eval": Command(
            config=f"{config}:EvalConfig",
            run=f"{code}.evaluate:evaluate",
            takes="run",
            gives="metrics",
            summary="Measure clean error, adversarial loss, rho_hat, phi and where the inner problem is not concave",
        ),
        "certify": Command(
            config=f"{config}:CertifyConfig",
            run=f"{code}.certificate:certify",
            takes="run",
            gives="certificates",
            summary="Bound the worst expected loss: proven (sound) or the paper's estimate; Figure 2",
        ),
        "boundary": Command(
            config=f"{config}:BoundaryConfig",
            run=f"{code}.figures:boundary",
            summary="Draw the decision boundaries of ERM, FGM and WRM on rings; Figure 1",
        ),
        "curves": Command(
            config=f"{config}:CurvesConfig",
            run=f"{code}.figures:curves",
            takes="runs",
            gives="report",
            summary="Draw error against attack budget and rho against 1/gamma; Figures 3 and 4a",
        ),
        "cartpole": Command(
            config=f"{config}:CartpoleConfig",
            run=f"{code}.cartpole:cartpole",
            summary="Train regular and robust tabular Q-learning on the cart-pole; Table 1",
        ),
    }
    return [
        Technique(
            name="wrm",
            summary="Robust training by penalised Wasserstein ascent",
            paper="arXiv:1710.10571",
            authors="Sinha, Namkoong, Duchi",
            commands=commands,
        )
    ]


@hookimpl
def iclr18_models():
    """Offer the paper's two networks."""
    return [
        ModelSpec(
            name="wrm/elu-cnn",
            build="iclr18_wrm.model:elu_cnn",
            task="classify",
            input_shape=(1, 28, 28),
            summary="The paper's MNIST network: three convolutions, one dense layer, ELU",
        ),
        ModelSpec(
            name="wrm/2-4-2",
            build="iclr18_wrm.model:two_four_two",
            task="classify",
            input_shape=(2,),
            summary="The paper's network for the synthetic task: 2-4-2 and an output layer",
        ),
    ]
