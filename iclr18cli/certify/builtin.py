"""The certificate methods of the core."""

from iclr18cli.plugin import CertifierSpec

BUILTIN = (
    CertifierSpec(
        name="wasserstein",
        summary="Worst expected loss over all distributions within a Wasserstein budget (sound ladder S0-S2)",
        config="iclr18cli.certify.config:WassersteinConfig",
        run="iclr18cli.certify.methods:wasserstein",
    ),
)
