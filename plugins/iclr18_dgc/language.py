"""`dgc train --dataset ptb`: the paper's language model, an LSTM trained with compressed gradients (section 4.2)."""

# T steps · B sequences

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from iclr18_dgc.compressors import compress
from iclr18_dgc.config import EvalConfig, TrainConfig
from iclr18_dgc.schedule import Schedule
from iclr18cli.models.registry import build
from iclr18cli.text.batching import Reader
from iclr18cli.text.corpus import open_corpus
from iclr18cli.text.perplexity import perplexity, token_losses
from iclr18cli.text.training import save, text_of

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun

MODEL = "recurrent-lm"
BPTT = 35


def train_text(config: TrainConfig, run: Run) -> None:
    """Train a language model; every worker reads some of the columns of the text.

    `--limit` is in tokens, `--batch-size` in columns of all workers together; the step size is that of the options at
    every step, as for images.
    """
    from iclr18_dgc.train import learning_rate

    corpus = open_corpus(
        config.dataset, data_dir=run.settings.data_dir, download=run.settings.download, limit=config.limit
    )
    kwargs: dict[str, Any] = {"vocabulary_size": len(corpus.vocabulary), "hidden": 200, "layers": 2, "tied": True}
    kwargs |= {"dropout_input": 0.2, "dropout_hidden": 0.2, "dropout_output": 0.2}
    net = build(MODEL, **kwargs).to(run.device)
    columns = min(config.batch_size, max(1, len(corpus.train) // 2))
    per_epoch = -(-(len(corpus.train) // columns - 1) // BPTT)
    schedule = Schedule.of_epochs(
        config.density, epochs=config.warmup_epochs, steps_per_epoch=per_epoch, densities=config.warmup_densities
    )
    made = compress(net, config, schedule, world_size=run.world.size, seed=run.seed)
    run.track(net=net, optimizer=made.optimizer)
    if made.state is not None:
        run.track_own(compressor=made.state)
    reader = Reader(run, corpus.train, epochs=config.epochs, batch_size=columns, bptt=BPTT)
    for x_TB, y_TB in reader:
        for group in made.optimizer.param_groups:
            group["lr"] = learning_rate(config, run.step - 1, per_epoch)
        logits_TBV, state = made.model(x_TB, reader.state)
        reader.carry(state)
        loss = F.cross_entropy(logits_TBV.flatten(0, 1), y_TB.flatten())
        made.optimizer.zero_grad()
        (loss * run.weight).backward()
        made.exchange()
        made.optimizer.step()
        run.log(loss=loss)
    if run.world.first:
        save(run.path, net, MODEL, kwargs, corpus.vocabulary, config.dataset)
    found = perplexity(token_losses(net, corpus.test, run.device))
    run.record("test", perplexity=found)
    sent = made.traffic
    run.finish(
        test_perplexity=found, payload_bytes=sent.payload, dense_bytes=sent.dense, ratio=sent.ratio,
        sent_bytes=sent.sent, workers=run.world.size,
    )  # fmt: skip


def evaluate_text(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure the perplexity of a run."""
    losses = token_losses(run.model(), text_of(run, config.split, config.limit), run.device)
    kept = run.directory.info.get("metrics", {})
    counted = {name: kept[name] for name in ("payload_bytes", "dense_bytes", "ratio", "workers") if name in kept}
    found = {"perplexity": perplexity(losses), "tokens": len(losses)}
    return {"dataset": run.data, "split": config.split, **found, **counted}
