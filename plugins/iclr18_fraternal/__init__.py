"""Fraternal dropout (Zolna, Arpit, Suhubdy, Bengio 2018), and the AWD-LSTM it is applied to."""

from typing import Any

from iclr18cli.plugin import Command, Technique, hookimpl

iclr18_api = 1


def command(config: str, run: str, summary: str, **kind: Any) -> Command:
    """Return a command whose config class and function live in this package."""
    return Command(config=f"iclr18_fraternal.config:{config}", run=f"iclr18_fraternal.{run}", summary=summary, **kind)


# fmt: off
COMMANDS = {
    "train": command("TrainConfig", "train:train", "Train a language model with FD, ELD, the Pi-model, or none"),
    "finetune": command("FinetuneConfig", "train:finetune", "Go on from a run with averaged SGD, as in AWD-LSTM",
                        takes="run"),
    "images": command("ImagesConfig", "images:train", "Train a classifier with few labels and unlabelled images"),
    "eval": command("EvalConfig", "evaluate:evaluate", "Measure perplexity, or accuracy of an image run",
                    takes="run", gives="metrics"),
    "certify": command("CertifyConfig", "certificate:certify", "Measure the kappa term and the expectation-linear gap",
                       takes="run", gives="certificates"),
}
TECHNIQUE = Technique(name="fraternal", summary="Fraternal dropout: two masks, one prediction",
                      paper="arXiv:1711.00066", authors="Zolna, Arpit, Suhubdy, Bengio", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
