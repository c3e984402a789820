"""The certificate methods of the core."""

from iclr18cli.plugin import CertifierSpec

BUILTIN = (
    CertifierSpec(
        name="wasserstein",
        summary="Worst expected loss over all distributions within a Wasserstein budget (sound ladder S0-S2)",
        config="iclr18cli.certify.config:WassersteinConfig",
        run="iclr18cli.certify.methods:wasserstein",
    ),
    CertifierSpec(
        name="smoothing",
        summary="Certified 2-norm radii of the classifier smoothed with Gaussian noise (Cohen et al. 2019)",
        config="iclr18cli.certify.config:SmoothingConfig",
        run="iclr18cli.certify.methods:smoothing",
    ),
    CertifierSpec(
        name="wasserstein-smoothing",
        summary="Worst error under noise over all distributions within a Wasserstein budget, for any model",
        config="iclr18cli.certify.config:WassersteinSmoothingConfig",
        run="iclr18cli.certify.methods:wasserstein_smoothing",
    ),
    CertifierSpec(
        name="lipschitz",
        summary="Predictions within a radius, from margins and a global Lipschitz constant (proven, no sampling)",
        config="iclr18cli.certify.config:LipschitzConfig",
        run="iclr18cli.certify.methods:lipschitz",
    ),
    CertifierSpec(
        name="ibp",
        summary="Certified accuracy in linf, l2 or l1 balls by interval bounds of the network's outputs",
        config="iclr18cli.certify.config:IbpConfig",
        run="iclr18cli.certify.methods:ibp",
    ),
    CertifierSpec(
        name="crown",
        summary="The same by linear relaxations carried back to the input (CROWN), never looser",
        config="iclr18cli.certify.config:CrownConfig",
        run="iclr18cli.certify.methods:crown",
    ),
)
