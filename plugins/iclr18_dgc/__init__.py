"""DGC: deep gradient compression for distributed training (Lin, Han, Mao, Wang, Dally, ICLR 2018)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iclr18cli.plugin import Command, Technique, hookimpl

if TYPE_CHECKING:
    from iclr18_dgc.hook import dgc_hook as dgc_hook
    from iclr18_dgc.optimizer import DGCOptimizer as DGCOptimizer
    from iclr18_dgc.schedule import Schedule as Schedule
    from iclr18_dgc.state import DGCState as DGCState

iclr18_api = 1
LIBRARY = {"DGCState": "state", "dgc_hook": "hook", "DGCOptimizer": "optimizer", "Schedule": "schedule"}
"""Name that a user's own training imports -> module it lives in; torch comes with the first use."""


def __getattr__(name: str) -> Any:
    if name not in LIBRARY:
        raise AttributeError(f"module 'iclr18_dgc' has no attribute {name!r}")
    return getattr(import_module(f"iclr18_dgc.{LIBRARY[name]}"), name)


# fmt: off
COMMANDS = {
    "train": Command(config="iclr18_dgc.config:TrainConfig", run="iclr18_dgc.train:train",
                     summary="Train a classifier; workers exchange 0.1 % of their gradients"),
    "eval": Command(config="iclr18_dgc.config:EvalConfig", run="iclr18_dgc.train:evaluate", takes="run",
                    gives="metrics", ranks=True, summary="Measure accuracy, and tell what the training sent"),
    "certify": Command(config="iclr18_dgc.config:CertifyConfig", run="iclr18_dgc.certificate:certify", takes="run",
                       gives="certificates", summary="Audit: nothing lost, equal replicas, bytes on the wire"),
    "bench": Command(config="iclr18_dgc.config:BenchConfig", run="iclr18_dgc.bench:bench",
                     summary="Time and bytes per step on slow and fast links, beside the peers"),
}
TECHNIQUE = Technique(name="dgc", summary="Deep gradient compression for slow links", paper="arXiv:1712.01887",
                      authors="Lin, Han, Mao, Wang, Dally", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
