"""Alternating multi-bit quantization for recurrent neural networks (Xu, Yao, Lin, Ou, Cao, Wang, Zha 2018)."""

from typing import Any

from iclr18cli.plugin import Command, Technique, hookimpl

iclr18_api = 1


def command(config: str, run: str, summary: str, **kind: Any) -> Command:
    """Return a command whose config class and function live in this package."""
    return Command(
        config=f"iclr18_alternating.config:{config}", run=f"iclr18_alternating.{run}", summary=summary, **kind
    )


# fmt: off
COMMANDS = {
    "train": command("TrainConfig", "train:train", "Train a language model with quantised weights, or in float"),
    "quantize": command("QuantizeConfig", "quantize:quantize", "Quantise a trained run, without training; section 5",
                        takes="run"),
    "eval": command("EvalConfig", "evaluate:evaluate", "Measure perplexity and memory", takes="run", gives="metrics"),
    "certify": command("CertifyConfig", "certificate:certify", "Check codes, error, bytes; bound the perplexity",
                       takes="run", gives="certificates"),
    "bench": command("BenchConfig", "bench:bench", "Time an LSTM step at batch 1 beside float32 and int8",
                     gives="report"),
}
TECHNIQUE = Technique(name="alternating", summary="Multi-bit quantisation of recurrent networks",
                      paper="arXiv:1802.00150", authors="Xu, Yao, Lin, Ou, Cao, Wang, Zha", commands=COMMANDS)
# fmt: on
iclr18_techniques = hookimpl(lambda: [TECHNIQUE], specname="iclr18_techniques")
