"""The training loop: one stage after another, resumable to the bit.

A run lives in a folder: `resume.pt`, `run.jsonl`, `curves.png`, and per stage `stageN.safetensors`
(its last averaged weights) and `stageN-best.safetensors` (those of its lowest validation MAE). A
stage with `average_from` leaves `stageN-mean.safetensors` too, and `stageN-I.safetensors` for each
iteration I that is in the mean.

On a GPU nothing in an iteration waits for the device: losses stay there until they are logged,
until a resume file is due, or until the weights are validated. (The first batch of each size does,
where a CUDA graph is captured.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from purnet.data.dataset import Sample
from purnet.errors import TrainingError
from purnet.io import make_folder, writing
from purnet.network import variants
from purnet.network.checkpoint import CheckpointInfo, convert, save, scale_note
from purnet.network.purnet import PurNet
from purnet.training.batches import Batches
from purnet.training.gradients import CapturedGradients, Gradients, Losses
from purnet.training.losses import Criterion
from purnet.training.optimizer import (
    AveragedNetwork,
    make_optimizer,
    restore_optimizer,
    set_rates,
)
from purnet.training.recipe import Recipe, Stage
from purnet.training.resume import (
    RunLog,
    RunState,
    Tensors,
    plot_curves,
    restore_rng,
    rng_state,
)
from purnet.training.sources import TrainingData
from purnet.training.validation import validate

LOG_EVERY = 20
"""Iterations between two lines of losses, and between two looks at whether they are finite."""

Listener = Callable[[int, int, float | None], None]
"""Called with (stage, iteration, last loss that was read) after every iteration."""


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """How a run is carried out.

    Of all this, `device` alone changes the weights that come out, and `cuda_graphs` their rounding:
    a GPU computes in another precision than a CPU.
    """

    out: Path
    device: torch.device
    loader_processes: int = 0
    """Processes that load samples; 0 loads between iterations."""
    save_every_s: float = 180.0
    """Seconds between two resume files."""
    stop_after_s: float | None = None
    """Seconds after which the run stops cleanly, with a resume file."""
    cuda_graphs: bool = False
    """Replay each step as a CUDA graph, one for each size of a batch, each with memory of its own;
    for a GPU that waits for the CPU. Not with the structure loss."""


class _Step(NamedTuple):
    """What one iteration leaves."""

    losses: Losses
    pairs: Tensor
    """Indices of the training pairs in the batch."""


@dataclass(slots=True)
class _StageRun:
    """A stage that is being trained: its parts, and how far it is."""

    index: int
    stage: Stage
    network: PurNet
    averaged: AveragedNetwork
    optimizer: torch.optim.Optimizer
    gradients: Gradients | CapturedGradients
    iteration: int = 0
    """Updates made so far."""
    best_mae: float = float("inf")
    unread: list[_Step] = field(default_factory=list)
    """Of the iterations since losses were last read."""
    loss: float | None = None
    """The last one that was read."""

    @property
    def name(self) -> str:
        """As files of the run call it."""
        return f"stage{self.index + 1}"


class Trainer:
    """Runs a recipe over data.

    `clock` is injected for tests; it only decides when to save and when to stop.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        options: TrainerOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        listener: Listener = lambda _stage, _iteration, _loss: None,
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.options = options
        self._clock = clock
        self._listener = listener
        self._log = RunLog(options.out / "run.jsonl")
        self._stages = list(range(len(recipe.stages)))
        self._init_sha256 = ""
        self._logits_scale = 1.0
        cuda = options.device.type == "cuda"
        self._batches = Batches(recipe, data, options.loader_processes, pin_memory=cuda)
        self._autocast = cuda and recipe.cuda_precision == "bfloat16"
        if options.cuda_graphs and not cuda:
            raise TrainingError("CUDA graphs need a CUDA device")
        if options.cuda_graphs and recipe.needs_superpixels:
            raise TrainingError(
                "CUDA graphs cannot hold the structure loss, whose regions vary in number"
            )

    def run(
        self,
        *,
        stages: Sequence[int] | None = None,
        init: Tensors | None = None,
        init_sha256: str = "",
        logits_scale: float = 1.0,
    ) -> bool:
        """Train the stages given (all by default), going on from a resume file if there is one.

        `init` holds the weights the first stage starts from, `init_sha256` is of their file, and
        `logits_scale` what their logits were scaled by: the weights that come out say so too.
        Returns False when `stop_after_s` ended the run before the last stage was done. Raises
        `TrainingError` for a resume file of another recipe, other data, other stages or another
        `init_sha256` and for a loss that is not finite, `WriteError` for files that cannot be
        written, `CheckpointError` where weights that belong to a stage's mean are gone.
        """
        make_folder(self.options.out)
        started = self._clock()
        if stages is not None:
            self._stages = list(stages)
        self._init_sha256 = init_sha256
        self._logits_scale = logits_scale
        order = self._stages
        state = self._resumed()
        if state is None:
            self._log.rewind(0, 0)
        else:
            order = [stage for stage in order if stage >= state.stage]
            self._log.rewind(state.stage + 1, state.iteration)
        weights = init
        # Without this, convolutions in float32 would compute in TF32 on a GPU.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self._autocast):
            for stage in order:
                here = state if state is not None and state.stage == stage else None
                finished, weights = self._run_stage(stage, weights, here, started)
                if not finished:
                    return False
        return True

    # --- one stage

    def _run_stage(
        self, index: int, init: Tensors | None, state: RunState | None, started: float
    ) -> tuple[bool, Tensors]:
        run = self._begin(index, init, state)
        training = self._batches.training(index, start=run.iteration, stride=run.network.stride)
        with training as batches, self._batches.validation() as validation:
            finished = self._train(run, batches, validation, started)
        if finished:
            self._export(run, run.name)
            self._export_mean(run)
        return finished, run.averaged.module.state_dict()

    def _train(
        self,
        run: _StageRun,
        batches: DataLoader[Sample],
        validation: DataLoader[Sample],
        started: float,
    ) -> bool:
        """Train over the batches; False when the time was up before the last of them."""
        saved = self._clock()
        per_epoch = self._batches.per_epoch(run.stage)
        for batch in batches:
            self._step(run, batch)
            run.averaged.update_parameters(run.network)
            run.iteration += 1
            now = self._clock()
            ended = run.iteration == run.stage.iterations
            epoch_ended = ended or run.iteration % per_epoch == 0
            limit = self.options.stop_after_s
            stopped = limit is not None and now - started >= limit and not ended
            save_is_due = epoch_ended or stopped or now - saved >= self.options.save_every_s
            if save_is_due or run.iteration % LOG_EVERY == 0:
                self._read_losses(run)
            self._listener(run.index, run.iteration, run.loss)
            if epoch_ended:
                self._check(run, validation)
            if save_is_due:
                self._save(run)
                saved = now
            if stopped:
                return False
        return True

    def _begin(self, index: int, init: Tensors | None, state: RunState | None) -> _StageRun:
        """A stage at its first iteration, or where `state` left it."""
        stage = self.recipe.stages[index]
        torch.manual_seed(self.recipe.seed + index)
        network = self._network(stage, init)
        run = _StageRun(
            index=index,
            stage=stage,
            network=network,
            averaged=AveragedNetwork(network, decay=self.recipe.ema),
            optimizer=make_optimizer(network, self.recipe, stage),
            gradients=self._gradients(network, stage),
        )
        if state is not None:
            network.load_state_dict(state.network)
            run.averaged.module.load_state_dict(state.averaged)
            run.averaged.n_averaged.fill_(state.iteration)
            restore_optimizer(run.optimizer, state.optimizer)
            restore_rng(state.rng, self.options.device)
            run.best_mae = state.best_mae
            run.iteration = state.iteration
        network.train()
        if stage.freeze_backbone_statistics:
            for module in network.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return run

    def _network(self, stage: Stage, init: Tensors | None) -> PurNet:
        network = variants.build(self.recipe.variant, attention=stage.attention)
        self.recipe.check_network(network.backbone.strides)
        if init is not None:
            unfit = network.incompatible_keys(init)
            if unfit:
                raise TrainingError(
                    f"the initial weights do not fit {self.recipe.variant}: {unfit[0]}"
                )
            network.load_state_dict(init, strict=False)
        return network.to(self.options.device).to(memory_format=torch.channels_last)

    def _gradients(self, network: PurNet, stage: Stage) -> Gradients | CapturedGradients:
        criterion = Criterion(
            weights=stage.weights,
            levels=self.recipe.level_weights or [1.0] * len(network.backbone.strides),
            boundary=stage.boundary,
            single_sigmoid=self.recipe.corrections.single_sigmoid,
        )
        gradients = Gradients(
            network, criterion, self.options.device, stage.isolate, self._autocast
        )
        return CapturedGradients(gradients) if self.options.cuda_graphs else gradients

    def _step(self, run: _StageRun, batch: Sample) -> None:
        """One update of the weights, without waiting for it."""
        set_rates(run.optimizer, run.stage, run.iteration)
        losses = run.gradients(batch)
        if self.recipe.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(run.network.parameters(), self.recipe.optimizer.clip_norm)
        run.optimizer.step()
        run.unread.append(_Step(losses, batch.pair))

    def _read_losses(self, run: _StageRun) -> None:
        """Read the losses since the last time, and log the last where a line is due.

        Raises `TrainingError` for one that is not finite.
        """
        steps, run.unread = run.unread, []
        totals = torch.stack([step.losses.total for step in steps]).tolist()
        for iteration, (step, total) in enumerate(
            zip(steps, totals, strict=True), run.iteration - len(steps)
        ):
            if not math.isfinite(total):
                names = ", ".join(self.data.train[n].stem for n in step.pairs.tolist())
                parts = ", ".join(
                    f"{name} {term.item():g}" for name, term in step.losses.terms.items()
                )
                raise TrainingError(
                    f"the loss is {total} in stage {run.index + 1} at iteration {iteration} "
                    f"({parts}); the batch: {names}"
                )
        run.loss = totals[-1]
        if run.iteration % LOG_EVERY == 0:
            terms = steps[-1].losses.terms
            self._log.append(
                {
                    "stage": run.index + 1,
                    "iteration": run.iteration,
                    "rate": run.stage.learning_rate * run.stage.rate(run.iteration - 1),
                    "loss": run.loss,
                    "losses": {name: round(term.item(), 6) for name, term in terms.items()},
                }
            )

    # --- weights

    def _check(self, run: _StageRun, validation: DataLoader[Sample]) -> None:
        """Validate the averaged weights, log, draw, and export them where they are the best."""
        scores = validate(run.averaged.module, validation, self.options.device)
        self._log.append(
            {
                "stage": run.index + 1,
                "iteration": run.iteration,
                "mae": round(scores.mae, 5),
                "max_f": round(scores.max_f, 5),
            }
        )
        plot_curves(self._log.entries(), self.options.out / "curves.png")
        if scores.mae < run.best_mae:
            run.best_mae = scores.mae
            self._export(run, f"{run.name}-best")
        if run.iteration in self._in_mean(run.stage):
            self._export(run, f"{run.name}-{run.iteration}")

    def _in_mean(self, stage: Stage) -> list[int]:
        """Iterations whose averaged weights are in the mean at the stage's end."""
        if stage.average_from is None:
            return []
        per_epoch = self._batches.per_epoch(stage)
        validated = {*range(per_epoch, stage.iterations, per_epoch), stage.iterations}
        return sorted(iteration for iteration in validated if iteration >= stage.average_from)

    def _export_mean(self, run: _StageRun) -> None:
        out = self.options.out
        paths = [out / f"{run.name}-{n}.safetensors" for n in self._in_mean(run.stage)]
        if paths:
            first, *others = paths
            convert(first, out / f"{run.name}-mean.safetensors", half=False, average_with=others)

    def _export(self, run: _StageRun, name: str) -> None:
        info = CheckpointInfo(
            variant=self.recipe.variant,
            input_size=variants.get(self.recipe.variant).input_size,
            attention=run.stage.attention,
            notes={
                "trained": f"{name}, iteration {run.iteration}, seed {self.recipe.seed}",
                **scale_note(self._logits_scale),
            },
        )
        path = self.options.out / f"{name}.safetensors"
        with writing(path):
            save(run.averaged.module.state_dict(), path, info, half=False)

    # --- resuming

    @property
    def _resume_path(self) -> Path:
        return self.options.out / "resume.pt"

    def _save(self, run: _StageRun) -> None:
        RunState(
            recipe=self.recipe.digest,
            variant=self.recipe.variant,
            data=self._data_digest,
            stages=self._stages,
            init=self._init_sha256,
            stage=run.index,
            iteration=run.iteration,
            best_mae=run.best_mae,
            network=run.network.state_dict(),
            averaged=run.averaged.module.state_dict(),
            optimizer=run.optimizer.state_dict(),
            rng=rng_state(self.options.device),
            logits_scale=self._logits_scale,
        ).save(self._resume_path)

    @cached_property
    def _data_digest(self) -> str:
        """Of sizes too, in bytes: photos or masks that were replaced show without being read."""
        pairs = (*self.data.train, *self.data.validation)
        files = [file for pair in pairs for file in (pair.image, pair.mask)]
        lines = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
        return sha256(f"{self.data.sizes}\n{lines}".encode()).hexdigest()

    def _resumed(self) -> RunState | None:
        if not self._resume_path.exists():
            return None
        state = RunState.load(self._resume_path)
        other = ""
        if state.recipe != self.recipe.digest:
            other = "another recipe"
        elif state.data != self._data_digest:
            other = "other data: names or sizes of files differ"
        elif state.stages != self._stages:
            other = f"a run of {_named(state.stages)}, not of {_named(self._stages)}"
        elif state.init != self._init_sha256:
            other = "a run from other initial weights"
        if other:
            raise TrainingError(f"{self._resume_path} belongs to {other}; choose another --out")
        return state


def _named(stages: Sequence[int]) -> str:
    return f"stage {', '.join(str(stage + 1) for stage in stages)}"
