"""The training loop: one stage after another, resumable to the bit.

A run lives in a folder: `resume.pt`, `run.jsonl`, `curves.png`, and per stage `stageN.safetensors`
(its last averaged weights) and `stageN-best.safetensors` (those of its lowest validation MAE).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from purnet.data.dataset import Augmentation, SaliencyDataset, Sample, epoch_order
from purnet.data.superpixels import IGNORE
from purnet.errors import TrainingError
from purnet.io import make_folder, writing
from purnet.network import variants
from purnet.network.checkpoint import CheckpointInfo, save
from purnet.network.purnet import PurNet
from purnet.training.log import RunLog, plot_curves
from purnet.training.losses import Criterion
from purnet.training.optimizer import make_optimiser, set_rates
from purnet.training.recipe import Recipe, Stage
from purnet.training.resume import AveragedWeights, RunState, Tensors, restore_rng, rng_state
from purnet.training.sources import TrainingData
from purnet.training.validation import validate

LOG_EVERY = 20
"""Iterations between two lines of losses."""

Listener = Callable[[int, int, float], None]
"""Hears (stage, iteration, loss) after every iteration."""


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """How a run is carried out; none of it changes the weights that come out."""

    out: Path
    device: torch.device
    loader_processes: int = 0
    """Processes that load samples; 0 loads between iterations."""
    save_every_s: float = 180.0
    """Seconds between two resume files."""
    stop_after_s: float | None = None
    """Seconds after which the run stops cleanly, with a resume file."""


@dataclass(slots=True)
class _StageRun:
    """A stage that is being trained: its parts, and how far it is."""

    index: int
    stage: Stage
    network: PurNet
    averaged: AveragedWeights
    optimiser: torch.optim.Optimizer
    criterion: Criterion
    iteration: int = 0
    """Updates made so far."""
    best_mae: float = float("inf")

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

    def run(
        self,
        *,
        stages: Sequence[int] | None = None,
        init: Tensors | None = None,
        init_sha256: str = "",
    ) -> bool:
        """Train the stages given (all by default), going on from a resume file if there is one.

        `init` holds the weights the first stage starts from, `init_sha256` is of their file.
        Returns False when `stop_after_s` ended the run before the last stage was done. Raises
        `TrainingError` for a resume file of another recipe, other data, other stages or another
        `init_sha256` and for a loss that is not finite, `WriteError` for files that cannot be
        written.
        """
        make_folder(self.options.out)
        started = self._clock()
        if stages is not None:
            self._stages = list(stages)
        self._init_sha256 = init_sha256
        order = self._stages
        state = self._resumed()
        if state is None:
            self._log.rewind(0, 0)
        else:
            order = [stage for stage in order if stage >= state.stage]
            self._log.rewind(state.stage + 1, state.iteration)
        weights = init
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
        stage, averaged = run.stage, run.averaged
        saved = self._clock()
        per_epoch = self._iterations_per_epoch(stage)
        for batch in self._batches(index, stage, first=run.iteration):
            loss = self._step(run, batch)
            averaged.update(run.network, updates=run.iteration)
            run.iteration += 1
            self._listener(index, run.iteration, loss)
            now = self._clock()
            if run.iteration % per_epoch == 0 or run.iteration == stage.iterations:
                self._check(run)
                self._save(run)
                saved = now
            elif now - saved >= self.options.save_every_s:
                self._save(run)
                saved = now
            stop = self.options.stop_after_s
            if stop is not None and now - started >= stop and run.iteration < stage.iterations:
                self._save(run)
                return False, averaged.tensors
        self._export(run, run.name)
        return True, averaged.tensors

    def _begin(self, index: int, init: Tensors | None, state: RunState | None) -> _StageRun:
        """A stage at its first iteration, or where `state` left it."""
        stage = self.recipe.stages[index]
        torch.manual_seed(self.recipe.seed + index)
        network = self._network(stage, init)
        run = _StageRun(
            index=index,
            stage=stage,
            network=network,
            averaged=AveragedWeights(network, decay=self.recipe.ema),
            optimiser=make_optimiser(network, self.recipe, stage),
            criterion=Criterion(
                weights=stage.weights,
                levels=self._level_weights(network),
                single_sigmoid=self.recipe.corrections.single_sigmoid,
            ),
        )
        if state is not None:
            network.load_state_dict(state.network)
            run.averaged.tensors = {
                name: tensor.to(self.options.device) for name, tensor in state.averaged.items()
            }
            run.optimiser.load_state_dict(state.optimiser)
            restore_rng(state.rng)
            run.best_mae = state.best_mae
            run.iteration = state.iteration
        return run

    def _step(self, run: _StageRun, batch: Sample) -> float:
        """One update of the weights; returns the loss it was made for."""
        device, stage = self.options.device, run.stage
        set_rates(run.optimiser, stage, run.iteration)
        run.network.train()
        images = batch.image.to(device).float().div_(255)
        output = run.network(
            images.contiguous(memory_format=torch.channels_last), isolate=stage.isolate
        )
        truth = batch.mask.to(device).float().div_(255)
        losses = run.criterion(output, truth, batch.regions.to(device))
        total = run.criterion.total(losses)
        loss = total.item()
        if not torch.isfinite(total):
            names = ", ".join(self.data.train[n].stem for n in batch.number.tolist())
            parts = ", ".join(f"{name} {term.item():g}" for name, term in losses.items())
            raise TrainingError(
                f"the loss is {loss} in stage {run.index + 1} at iteration {run.iteration} "
                f"({parts}); the batch: {names}"
            )
        run.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if self.recipe.optimiser.clip_norm is not None:
            nn.utils.clip_grad_norm_(run.network.parameters(), self.recipe.optimiser.clip_norm)
        run.optimiser.step()
        if (run.iteration + 1) % LOG_EVERY == 0:
            self._log.append(
                {
                    "stage": run.index + 1,
                    "iteration": run.iteration + 1,
                    "rate": stage.learning_rate * stage.rate(run.iteration),
                    "loss": loss,
                    "losses": {name: round(term.item(), 6) for name, term in losses.items()},
                }
            )
        return loss

    # --- data

    def _iterations_per_epoch(self, stage: Stage) -> int:
        samples = self.recipe.epoch_samples or len(self.data.train)
        return max(1, samples // stage.batch_size)

    def _batches(self, index: int, stage: Stage, *, first: int) -> Iterator[Sample]:
        """Batches of a stage from iteration `first` on, each a function of its number alone."""
        per_epoch = self._iterations_per_epoch(stage)
        iteration = first
        while iteration < stage.iterations:
            epoch, position = divmod(iteration, per_epoch)
            # Stages are kept apart, so that none repeats the order of the one before.
            number = index * 100_000 + epoch
            order = epoch_order(
                self.data.sizes,
                [source.share for source in self.recipe.sources],
                samples=per_epoch * stage.batch_size,
                seed=self.recipe.seed,
                epoch=number,
            )
            left = min(per_epoch - position, stage.iterations - iteration)
            start = position * stage.batch_size
            chosen = order[start : start + left * stage.batch_size]
            yield from self._loader(
                SaliencyDataset(
                    self.data.train,
                    self.data.train_regions,
                    size=stage.image_size,
                    augmentation=stage.augmentation or self.recipe.augmentation,
                    seed=self.recipe.seed,
                    epoch=number,
                    region_fill=IGNORE if self.recipe.corrections.fill_is_no_region else 0,
                ),
                chosen,
                stage.batch_size,
            )
            iteration += left

    def _loader(
        self, dataset: SaliencyDataset, order: Sequence[int], batch_size: int
    ) -> DataLoader[Sample]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=self.options.loader_processes,
            # Of its own, so that a loader draws nothing from the generator the network may use.
            generator=torch.Generator(),
            pin_memory=self.options.device.type == "cuda",
        )

    # --- weights

    def _level_weights(self, network: PurNet) -> list[float]:
        return self.recipe.level_weights or [1.0] * len(network.backbone.strides)

    def _network(self, stage: Stage, init: Tensors | None) -> PurNet:
        network = variants.build(self.recipe.variant, attention=stage.attention)
        if init is not None:
            own = network.state_dict()
            unfit = [n for n in own.keys() - init.keys() if not n.startswith(ATTENTION_PARTS)]
            unfit = [n for n in unfit if ".refine." not in n]
            unfit += [n for n, x in init.items() if n not in own or x.shape != own[n].shape]
            if unfit:
                raise TrainingError(
                    f"the initial weights do not fit {self.recipe.variant}: {min(unfit)}"
                )
            network.load_state_dict(init, strict=False)
        return network.to(self.options.device).to(memory_format=torch.channels_last)

    def _check(self, run: _StageRun) -> None:
        """Validate the averaged weights, log, draw, and export them where they are the best."""
        network = run.network
        plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(run.averaged.tensors)
        dataset = SaliencyDataset(
            self.data.validation,
            self.data.validation_regions,
            # Of prediction, so that scores compare between stages and the best is what a user gets.
            size=variants.get(self.recipe.variant).input_size,
            augmentation=Augmentation(),
            seed=0,
            epoch=0,
        )
        order = range(len(dataset))
        batches = self._loader(dataset, order, run.stage.batch_size)
        scores = validate(network, batches, self.options.device)
        network.load_state_dict(plain)
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

    def _export(self, run: _StageRun, name: str) -> None:
        info = CheckpointInfo(
            variant=self.recipe.variant,
            input_size=variants.get(self.recipe.variant).input_size,
            attention=run.stage.attention,
            notes={"trained": f"{name}, iteration {run.iteration}, seed {self.recipe.seed}"},
        )
        path = self.options.out / f"{name}.safetensors"
        with writing(path):
            save(run.averaged.tensors, path, info, half=False)

    # --- resuming

    @property
    def _resume_path(self) -> Path:
        return self.options.out / "resume.pt"

    def _save(self, run: _StageRun) -> None:
        RunState(
            recipe=repr(self.recipe),
            pairs=self._pairs_digest(),
            stage=run.index,
            iteration=run.iteration,
            best_mae=run.best_mae,
            network=run.network.state_dict(),
            averaged=run.averaged.tensors,
            optimiser=run.optimiser.state_dict(),
            rng=rng_state(),
            stages=self._stages,
            init=self._init_sha256,
            files=self._files_digest,
        ).save(self._resume_path)

    def _pairs_digest(self) -> str:
        names = "\n".join(str(pair.image.name) for pair in self.data.train)
        return sha256(names.encode()).hexdigest()

    @cached_property
    def _files_digest(self) -> str:
        """Of sizes too, in bytes: photos or masks that were replaced show without being read."""
        pairs = (*self.data.train, *self.data.validation)
        files = [file for pair in pairs for file in (pair.image, pair.mask)]
        lines = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
        return sha256(lines.encode()).hexdigest()

    def _resumed(self) -> RunState | None:
        if not self._resume_path.exists():
            return None
        state = RunState.load(self._resume_path)
        other = ""
        if state.recipe != repr(self.recipe):
            other = "another recipe"
        elif state.pairs != self._pairs_digest():
            other = "other data"
        elif state.files not in (None, self._files_digest):
            other = "other data: names or sizes of files differ"
        elif state.stages not in (None, self._stages):
            other = f"a run of {_told(state.stages)}, not of {_told(self._stages)}"
        elif state.init not in (None, self._init_sha256):
            other = "a run from other initial weights"
        if other:
            raise TrainingError(f"{self._resume_path} belongs to {other}; choose another --out")
        return state


def _told(stages: Sequence[int]) -> str:
    return f"stage {', '.join(str(stage + 1) for stage in stages)}"


ATTENTION_PARTS = ("promotion.", "rectification.")
"""Names of the tensors that a network without attentions lacks begin with one of these."""
