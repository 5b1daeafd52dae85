"""Which samples the batches of a run hold, and the processes that load them.

Both follow from numbers alone: a run that goes on sees the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from purnet.data.augment import Augmentation
from purnet.data.dataset import SaliencyDataset, Sample, SampleKey, epoch_order
from purnet.data.superpixels import IGNORE
from purnet.network import variants
from purnet.training.recipe import Recipe, Stage
from purnet.training.sources import TrainingData

VALIDATION_BATCH = 16


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of a recipe over its data.

    What loads them is a context: when its block is left, its processes have ended.
    """

    recipe: Recipe
    data: TrainingData
    loader_processes: int
    """0 loads in this process."""
    pin_memory: bool

    def per_epoch(self, stage: Stage) -> int:
        """Iterations between two validations."""
        samples = self.recipe.epoch_samples or len(self.data.train)
        return max(1, samples // stage.batch_size)

    @contextmanager
    def training(self, index: int, *, start: int, stride: int) -> Iterator[DataLoader[Sample]]:
        """Batches of the stage at `index` from the iteration `start` to its last."""
        stage = self.recipe.stages[index]
        dataset = SaliencyDataset(
            self.data.train,
            self.data.regions if stage.weights.structure else None,
            augmentation=stage.augmentation or self.recipe.augmentation,
            seed=self.recipe.seed,
            region_fill=IGNORE if self.recipe.corrections.fill_is_no_region else 0,
        )
        with self._loader(dataset, self._keys(index, start, stride)) as loader:
            yield loader

    @contextmanager
    def validation(self) -> Iterator[DataLoader[Sample]]:
        """The held-out pairs at the size of prediction, whatever a stage trains at.

        So scores compare between stages, and the best weights are the best for a user.
        """
        dataset = SaliencyDataset(self.data.validation, None, augmentation=Augmentation(), seed=0)
        size = variants.get(self.recipe.variant).input_size
        keys = [SampleKey(epoch=0, position=i, pair=i, size=size) for i in range(len(dataset))]
        starts = range(0, len(keys), VALIDATION_BATCH)
        with self._loader(dataset, [keys[i : i + VALIDATION_BATCH] for i in starts]) as loader:
            yield loader

    def _keys(self, index: int, start: int, stride: int) -> Iterator[list[SampleKey]]:
        """Keys of the samples of each batch, a function of its number alone."""
        stage, seed = self.recipe.stages[index], self.recipe.seed
        sizes = stage.sizes(stride)
        per_epoch = self.per_epoch(stage)
        iteration = start
        while iteration < stage.iterations:
            epoch, position = divmod(iteration, per_epoch)
            # Stages are kept apart, so that none repeats the order of the one before.
            run_epoch = index * 100_000 + epoch
            order = epoch_order(
                self.data.sizes,
                [source.share for source in self.recipe.sources if source.share],
                samples=per_epoch * stage.batch_size,
                seed=seed,
                epoch=run_epoch,
            )
            for batch in range(position, min(per_epoch, position + stage.iterations - iteration)):
                size = int(np.random.default_rng([seed, run_epoch, batch]).choice(sizes))
                first = batch * stage.batch_size
                chosen = order[first : first + stage.batch_size]
                yield [
                    SampleKey(epoch=run_epoch, position=position_in_epoch, pair=pair, size=size)
                    for position_in_epoch, pair in enumerate(chosen, first)
                ]
            iteration += per_epoch - position

    @contextmanager
    def _loader(
        self, dataset: SaliencyDataset, batches: Iterable[list[SampleKey]]
    ) -> Iterator[DataLoader[Sample]]:
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.loader_processes,
            persistent_workers=self.loader_processes > 0,
            # Of its own, so that a loader draws nothing from the generator the network may use.
            generator=torch.Generator(),
            pin_memory=self.pin_memory,
        )
        try:
            yield loader
        finally:
            # torch has no public call that ends the processes of a loader: it leaves them to the
            # moment when Python frees its iterator, which an exception may put off.
            iterator: Any = loader._iterator
            if iterator is not None:
                iterator._shutdown_workers()
