"""A training in progress. The update is the technique's; order of data, checkpoints, signals and resume are the run's.

B batch · N examples
"""

from __future__ import annotations

import shutil
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from iclr18cli import device as devices
from iclr18cli.errors import Interrupted, UserError
from iclr18cli.launch import ALONE, World, lost_rank
from iclr18cli.paths import runs_root
from iclr18cli.plugin import RunInfo, Task
from iclr18cli.run.checkpoint import BEST, Checkpoints
from iclr18cli.run.directory import METRICS, RunDirectory
from iclr18cli.run.environment import now
from iclr18cli.run.interval import number
from iclr18cli.run.memory import Memory
from iclr18cli.run.metrics import MetricsFile, NoMetrics
from iclr18cli.run.phases import Phases, Progress, no_progress
from iclr18cli.run.record import Record
from iclr18cli.run.signals import Signals
from iclr18cli.settings import TrainSettings

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.averaging import Averaging

Observer = Callable[..., None]
Augment = Callable[[Tensor, torch.Generator], Tensor]


class Run:
    """A training in progress, made by `open_run` or `resume_run` and used as a context manager.

    Resuming replays the technique's function: phases (calls of `epochs` or `steps`, in order) that were over are
    skipped, the one that was under way is entered where the checkpoint left it. At the end of each skipped phase, and
    on entering the last one, tracked objects and all generators are put where they were at that point, so that code
    between phases computes what it computed the first time.

    Attributes:
        path, directory: Where the run is kept.
        technique, config: Its technique and the contents of config.toml.
        settings, device, seed: The shared options in force.
        epoch_ends: Inside a loop: this is the last step of an epoch (of the whole phase, for `steps`).
        values: Plain values that must survive an interruption: numbers, text, tensors, collections of them.
        resumed: The run goes on from an earlier process.
        world: This process among the N ranks that train together; alone as a rule. The first rank writes, the calls
            of the others that would write do nothing.
        weight: N b_r / B, where this rank has b_r of the B examples of this step's batch: 1 for equal shares.
    """

    def __init__(
        self, directory: RunDirectory, settings: TrainSettings, device: torch.device, *, checkpoints: Checkpoints,
        lock: IO[bytes] | None = None, resumed: bool = False, saved: Mapping[str, Any] | None = None,
        progress: Progress | None = None, observer: Observer | None = None, world: World = ALONE,
    ):  # fmt: skip
        self.world, self.weight = world, 1.0
        info = directory.info
        self.directory, self.path, self.config = directory, directory.path, directory.config
        self.technique: str = info["technique"]
        self.settings, self.device, self.seed = settings, device, settings.seed
        self.resumed, self.epoch_ends, self._finished = resumed, False, False
        self._checkpoints, self._lock, self._observer = checkpoints, lock, observer
        self._memory = Memory(self.seed, device, world.rank)
        self.values = self._memory.values
        metrics_size = saved["metrics_size"] if saved else 0
        self._record = Record(
            MetricsFile(self.path / METRICS, metrics_size) if world.first else NoMetrics(), world=world,
            every=settings.log_every, seconds=saved["seconds"] if saved else 0.0,
            told=lambda step, metrics: self.tell("run_logged", step=step, metrics=metrics),
        )  # fmt: skip
        reference = self.path.name if self.path.parent.resolve() == runs_root().resolve() else self.path
        ranks = f" --nproc {world.size}" if world.size > 1 else ""
        self._signals = Signals(f"iclr18 {self.technique} {info.get('command', 'train')} --resume {reference}{ranks}")
        self.progress = progress or no_progress
        self._phases = Phases(
            settings, self._memory, self._record, checkpoints, self._signals, self.progress, saved, world
        )
        self._averaging: Averaging | None = None

    @property
    def step(self) -> int:
        """Number of the current step in the whole run, from 1; after a loop, the number of steps done."""
        return self._phases.at.step

    @property
    def epoch(self) -> int:
        """Number of the current epoch in the whole run, from 1; 0 before the first."""
        return self._phases.at.epoch

    @property
    def seconds(self) -> float:
        """Seconds this run has taken, those before an interruption included up to its last checkpoint."""
        return self._record.seconds

    def track(self, **objects: Any) -> None:
        """Put objects with a state_dict under the care of the checkpoints: modules, optimisers, schedulers.

        Call it before the first phase that changes them. On resume they get their state when that phase is entered.
        """
        for name, thing in objects.items():
            self._memory.track(name, thing)

    def track_own(self, **objects: Any) -> None:
        """Put objects that each rank has a different one of under the care of the checkpoints.

        Beside state_dict and load_state_dict they have `merge(states) -> state`, which makes one state of those of all
        ranks for a run that goes on with another number of them.
        """
        for name, thing in objects.items():
            self._memory.track_own(name, thing)

    def generator(
        self, name: str, device: torch.device | str = "cpu", *, per_rank: bool = False
    ) -> torch.Generator:  # fmt: skip
        """Return the generator of a name: seeded from (seed, name), carried through interruptions.

        Args:
            name: What it draws.
            device: Where it draws.
            per_rank: Each rank draws numbers of its own, for its share of a batch; otherwise all draw the same ones,
                for what the whole batch needs.
        """
        return self._memory.generator(name, torch.device(device), per_rank=per_rank)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module, ready to train: on the run's device and, among several ranks, trained by all of them.

        Every rank starts from the first one's weights, and every backward pass ends with the gradients of the whole
        batch in `.grad`, whatever made the loss: see `Averaging`. Statistics of batch normalisation are averaged too;
        while training it normalises by each rank's share.
        """
        module = module.to(self.device)
        if self.world.size > 1:
            from iclr18cli.run.averaging import Averaging

            if self._averaging is None:
                self._averaging = Averaging(self.world, lambda: self.weight)
            self._averaging.watch(module)
        return module

    def share(self, batch: Tensor) -> Tensor:
        """Return this rank's share of a batch, along the first dimension, and note its weight: all of it, if alone.

        For techniques that draw their own batches, alike on every rank. A batch of fewer examples than ranks leaves
        some ranks one of weight 0.

        Args:
            batch: (B, …), usually the numbers of the examples.

        Returns:
            (b_r, …), consecutive examples, sizes that differ by at most one.
        """
        B = len(batch)
        part = self.world.part(B)
        self.weight = (part.stop - part.start) * self.world.size / B
        return batch[part] if self.weight else batch[:1]

    def total(self, value: Any) -> Any:
        """Return the sum over the ranks of a number or a tensor; every rank must call it."""
        return self.world.total(value)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward pass runs in the run's precision."""
        return devices.autocast(self.device, self.settings.precision)

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; passes everything through in other precisions. Its state is kept in checkpoints."""
        if "scaler" not in self._memory.objects:
            enabled = self.settings.precision == "fp16"
            self.track(scaler=torch.amp.GradScaler(self.device.type, enabled=enabled))
        return self._memory.objects["scaler"]

    def descend(self, loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        """Take one step of each optimiser down a loss: gradients cleared, scaled in fp16, averaged over the ranks."""
        scaler = self.scaler
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(loss).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()

    def epochs(
        self, split: Split, epochs: int, *, batch_size: int, augment: Augment | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over a split in batches, each epoch in an order that is a function of (seed, epoch).

        Args:
            split: N examples, moved to the device once; batches are gathered there.
            epochs: Passes over the split.
            batch_size: Examples B per step; the last batch of an epoch is as short as it comes, or left out.
            augment: `(x, generator) -> x`; the generator is on the device and seeded from (seed, step). Among several
                ranks it is given the whole batch, so that their number does not change what is drawn.
            drop_last: Leave out the last batch of an epoch if it is short.

        Yields:
            (x, y): (B, *shape) float32 inputs and (B,) int64 labels on the device: this rank's share of the batch.

        Raises:
            ValueError: `epochs` is negative or `batch_size` below 1.
            UserError: The split is smaller than one batch and `drop_last` is set, or it is empty.
        """
        from iclr18cli.data.tensors import order

        if epochs < 0 or batch_size < 1:
            raise ValueError(f"epochs must be >= 0 and batch_size >= 1; received {epochs} and {batch_size}")
        N = len(split)
        per_epoch = N // batch_size if drop_last else -(-N // batch_size)
        if per_epoch == 0:
            raise UserError(f"{N} examples make no batch of {batch_size}.", fix="a smaller --batch-size, or more data")
        at, data = self._phases.at, split.to(self.device)
        generator = torch.Generator(self.device)
        batches: tuple[Tensor, ...] = ()
        drawn = -1

        def batch(done: int) -> tuple[Tensor, Tensor]:
            nonlocal batches, drawn
            epoch, place = divmod(done, per_epoch)
            if epoch != drawn:
                permutation = order(N, seed=self.seed, epoch=at.epochs_before + epoch)
                batches, drawn = permutation.to(self.device).split(batch_size), epoch
                at.epoch = at.epochs_before + epoch + 1
            self.epoch_ends = place == per_epoch - 1
            index = batches[place]
            if augment is None:
                index = self.share(index)
                return data.inputs(index), data.y[index]
            x = augment(data.inputs(index), generator.manual_seed(devices.derived_seed(self.seed, "augment", at.step)))
            return self.share(x), data.y[self.share(index)]

        return self._phases.iterate(epochs * per_epoch, self.technique, batch)

    def steps(self, count: int, *, total_name: str = "step") -> Iterator[int]:
        """Iterate over 0 .. count - 1, for techniques that draw their own data (from `generator`, or by the number)."""
        if count < 0:
            raise ValueError(f"count must be >= 0; received {count}")

        def index(done: int) -> int:
            self.epoch_ends, self.weight = done == count - 1, 1.0
            return done

        return self._phases.iterate(count, f"{self.technique} {total_name}", index)

    def passes(self, counts: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Iterate over (epoch, step in it), both from 0, for techniques whose epochs have steps of their own number.

        Args:
            counts: Number of steps of each epoch, at least 1.
        """
        if not all(count >= 1 for count in counts):
            raise ValueError(f"every epoch must have a step; received {list(counts)[:10]}")
        at = self._phases.at
        ends = list(accumulate(counts))

        def place(done: int) -> tuple[int, int]:
            epoch = bisect_right(ends, done)
            at.epoch = at.epochs_before + epoch + 1
            self.epoch_ends, self.weight = done == ends[epoch] - 1, 1.0
            return epoch, done - (ends[epoch] - counts[epoch])

        return self._phases.iterate(ends[-1] if ends else 0, self.technique, place)

    def stop(self) -> None:
        """End the current phase after this step, as if it had been the last: early stopping that resumes exactly."""
        self._phases.stopping = True

    def log(self, **metrics: float | Tensor) -> None:
        """Note values of this step: numbers or tensors of one element, not to be written to afterwards.

        Among several ranks they are means over this rank's share, and what is written is the mean over the batch.

        They stay on the device; once per `settings.log_every` steps their means become one line of metrics.jsonl. A
        `loss` that is NaN or infinite stops the run (UserError) then, or before the next checkpoint if that is sooner.
        """
        if not self._phases.replaying:
            self._record.interval.add(self._phases.at.step, metrics, self.weight)

    def record(self, split: str, **metrics: float | Tensor) -> None:
        """Write one line of metrics.jsonl now, for example at the end of an epoch; none while replaying."""
        if not self._phases.replaying:
            self._record.write(split, {name: number(value) for name, value in metrics.items()}, self.step, self.epoch)

    def best(self, value: float | Tensor, *, lower: bool = True) -> bool:
        """Say whether `value`, its mean over the ranks, is the best so far; best.pt is then this step's checkpoint."""
        return self._phases.best(number(self.world.total(value)) / self.world.size, lower=lower)

    def restore_best(self) -> None:
        """Give the tracked objects the state of best.pt, for example before `save_model`."""
        self._phases.write_best()
        self.world.wait()
        for name, state in self._checkpoints.shared(BEST)["memory"]["objects"].items():
            if name in self._memory.objects:
                self._memory.load(name, state)

    def figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure to plots/NAME.png and return its path."""
        return self.directory.figure(name, figure)

    def save_model(
        self, module: nn.Module, *, model: str, kwargs: Mapping[str, Any], split: Split, task: Task = "classify",
        transforms: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        """Write model.safetensors and model.json, from which every other command rebuilds the network.

        Args:
            module: The trained network.
            model, kwargs: Registry name and arguments that build it.
            split: The data it was trained on: shape, range and classes of the inputs it takes.
            task: What it does.
            transforms: Re-parametrisations applied after building.
        """
        from iclr18cli.models.card import ModelCard, save_model

        if not self.world.first:
            return
        card = ModelCard(
            model=model, kwargs=dict(kwargs), task=task, shape=split.shape, range=split.range,
            classes=len(split.classes), dataset=split.name, transforms=tuple(transforms),
        )  # fmt: skip
        save_model(self.path, module, card)

    def finish(self, **metrics: Any) -> None:
        """Write the last metrics and the status "done"; the end of the `with` block does it without metrics."""
        if self._phases.replaying:
            raise RuntimeError("the checkpoint is in a phase that this training never entered")
        self._record.flush(self.step, self.epoch)
        self.directory.update(
            status="done", reason="", ended=now(), seconds=round(self.seconds, 3),
            metrics=self.directory.info.get("metrics", {}) | metrics,
        )  # fmt: skip
        self._finished = True

    def tell(self, event: str, **arguments: Any) -> None:
        """Tell the observer of an event of this run: run_started, run_logged, run_finished."""
        if self._observer is not None and self.world.first:
            status = arguments.get("status", "running")
            info = RunInfo(
                id=self.path.name, path=str(self.path), technique=self.technique, config=self.config, status=status
            )
            self._observer(event, run=info, **arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.restore()
        try:
            if error is None and not self._finished:
                self.finish()
        except BaseException as late:
            error = late
            raise
        finally:
            # A full disk may be what ended the run: a second error of that kind must not hide the first.
            with suppress(UserError):
                self._ended_by(error)
            self.close()
            began = self.resumed or self._phases.at.phase >= 0 or (self.path / METRICS).stat().st_size
            if isinstance(error, UserError) and not began and self.world.first:
                shutil.rmtree(self.path, ignore_errors=True)  # a wrong name leaves no run behind

    def _ended_by(self, error: BaseException | None) -> None:
        error = lost_rank(error) or error
        if error is None:
            status, reason, details = "done", "", ""
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            status, reason, details = "interrupted", str(error) or "Ctrl-C", ""
        else:
            status = "failed"
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            details = "\n" + "".join(traceback.format_exception(error)).rstrip()
        try:
            if error is not None:
                self.directory.update(status=status, reason=reason, ended=now(), seconds=round(self.seconds, 3))
            self.directory.note(f"{status}{': ' if reason else ''}{reason}{details}")
        finally:
            self.tell("run_finished", status=status)

    def close(self) -> None:
        """Close the run's files and let another process have it."""
        self._record.file.close()
        if self._lock is not None:
            self._lock.close()
