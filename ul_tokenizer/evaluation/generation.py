"""Measures generated images: their distance from real ones, their variety, their classes, and what they memorise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ul_tokenizer.evaluation.distances import measure_distances
from ul_tokenizer.evaluation.environment import environment
from ul_tokenizer.evaluation.figures import BOOTSTRAP, mean_figure, medians
from ul_tokenizer.evaluation.generated import Generated
from ul_tokenizer.evaluation.grids import comparison_grid
from ul_tokenizer.evaluation.measures.feature_sets import FeatureSet
from ul_tokenizer.evaluation.measures.manifold import manifold_metrics
from ul_tokenizer.evaluation.measures.memorisation import Nearest
from ul_tokenizer.evaluation.nets.feature_nets import ClassifierNet, FeatureNet
from ul_tokenizer.evaluation.parts import NUMBER, Array, Batch, Columns, PartedJob, PartNotes, Parts
from ul_tokenizer.evaluation.reference_features import (
    DIGEST,
    ReferenceFeatures,
    Rows,
    digests_of,
    key_of,
    load_reference_features,
    pixels_sha256,
)
from ul_tokenizer.evaluation.results import FORMAT, VERSION, pictures_folder, read_result, write_result
from ul_tokenizer.evaluation.runs import features_column, label_of_subject, merged_features, parts_folder, stem_of
from ul_tokenizer.evaluation.samples import EvaluationSamples, Sample
from ul_tokenizer.files import whole_file, write_whole
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.processes import Processes
from ul_tokenizer.randomness import EvaluationStream, numpy_generator

NUM_SHOWN, COLUMNS = 60, 10  # images in the grid; ten classes that take turns have a column each
FLOOR_DRAWS, FEW_FEATURES = 10, 512  # with more features a single draw has to do: each costs seconds
LEAST_FOR_MANIFOLDS = 6  # images: five neighbours are looked for beside each
REAL_ACCURACY = "real_accuracy"  # of the classifier: about the best that generated images can reach
_WANTED, _SEEN, _SECONDS = "wanted", "seen", "seconds"
_NOT_FINITE = "some images are not finite; nonfinite names them."


@dataclass(frozen=True)
class GenerationEvaluation:
    """What is measured of generated images, and against which real ones.

    Args:
        real: the real images that the distances are to.
        nets: networks for features; the first also gives precision, recall, density, coverage and neighbours.
        train: the real training images, for the floor and for what is memorised; None measures nothing memorised, and
            the floor is the distance of two halves of `real`.
        output: folder for results; None keeps none.
        references: files with the features of `real` for each net's name; others are kept in a cache.
        batch_size: images per batch; it changes speed and memory only.
        force_fd: see `measure_distances`.
        missing: what can't be measured and why, for the results.
        processes: those that share the work.
        device: where images are drawn, for the results.
    """

    real: EvaluationSamples
    nets: Sequence[FeatureNet]
    train: EvaluationSamples | None = None
    output: Path | None = None
    references: Mapping[str, Path] = field(default_factory=dict)
    batch_size: int = 100
    force_fd: bool = False
    missing: Sequence[str] = ()
    processes: Processes = field(default_factory=Processes)
    device: torch.device | str = "cpu"

    def run(self, generated: Generated) -> dict[str, Any]:
        """Measures images, or reads their result if the output folder has it; every process gets it.

        Raises:
            ValueError: images of another size or of other classes than the real ones, or none that can be read.
            OSError: a result can't be written.
        """
        facts = generated.facts()
        key = self._key(facts, len(generated))
        path = None if self.output is None else self.output / f"{stem_of(facts)}-{key[:8]}.json"
        if path is not None and path.exists() and (known := read_result(path))["key"] == key:
            return known
        self._check(generated)
        reals = [self._features_of(self.real, net) for net in self.nets]
        trains = [None if self.train is None else self._features_of(self.train, net) for net in self.nets]
        with parts_folder(path, key, self.processes) as folder:
            shown = None if path is None else folder / "shown"
            work, label = self._measured(generated, shown), label_of_subject(facts)
            parts = PartedJob(generated, work, folder, key, self.batch_size, self.processes, label).run()
            result = None
            with self.processes.together():
                if self.processes.is_main:
                    pictures = None if path is None else pictures_folder(path)
                    result = self._result(generated, facts, key, parts, reals, trains, pictures)
                    if path is not None and pictures is not None and shown is not None:
                        _save_grid(shown, pictures / "grid.png")
                        _save_prompts(generated, pictures / "grid.txt")
                        write_result(path, result)
            (result, *_) = self.processes.gather(result)
        assert result is not None  # of the main process
        return result

    def _key(self, facts: Mapping[str, Any], count: int) -> str:
        protocols = [None if part is None else _without_name(part.facts()) for part in (self.real, self.train)]
        return key_of("generation", facts, *protocols, [dict(net.facts()) for net in self.nets], count, self.force_fd)

    def _check(self, generated: Generated) -> None:
        if len(self.real.shape) != 3:
            raise ValueError("real must be images, got clips.")
        self._check_size("images", generated.shape)
        if self.train is not None:
            self._check_size("train", self.train.shape)
        known = () if self._classifier is None else self._classifier.class_names
        for place, names in (("real", self.real.source.class_names), ("images", generated.class_names)):
            if known and names and tuple(names) != known:
                raise ValueError(f"{place} must have the classifier's classes, {_some(known)}, got {_some(names)}.")

    def _check_size(self, place: str, shape: Sequence[int]) -> None:
        if tuple(shape) != self.real.shape:
            wanted, got = ("×".join(map(str, part[1:])) for part in (self.real.shape, shape))
            raise ValueError(f"{place} must have the real ones' size {wanted}, got {got}; choose resolution and crop.")

    def _features_of(self, samples: EvaluationSamples, net: FeatureNet) -> ReferenceFeatures:
        path = self.references.get(net.name) if samples is self.real else None
        return load_reference_features(samples, net, self.processes, path=path, batch_size=self.batch_size)

    @property
    def _classifier(self) -> ClassifierNet | None:
        return next((net for net in self.nets if isinstance(net, ClassifierNet)), None)

    # ------------------------------------------------------------------------------------------------------------
    # A batch
    # ------------------------------------------------------------------------------------------------------------

    def _measured(self, generated: Generated, shown: Path | None) -> Callable[[Batch, PartNotes], Columns]:
        def measure(batch: Batch, notes: PartNotes) -> Columns:
            start = time.perf_counter()
            images, is_finite = generated.images(batch)
            seconds = (time.perf_counter() - start) / len(images)
            self._check_size("images", images.shape[1:])
            samples = [Sample(generated.id(n), image) for n, image in zip(batch.numbers, images, strict=True)]
            notes.nonfinite += [s.id for s, fine in zip(samples, is_finite.tolist(), strict=True) if not fine]
            if shown is not None:
                _keep(shown, batch.numbers, images)
            features = {net.name: net(images) for net in self.nets}
            return {
                **{features_column(net): features[net.name].numpy() for net in self.nets},
                **self._classes(generated, batch.numbers, features),
                DIGEST: digests_of(Batch(batch.numbers, samples)),
                _SECONDS: np.full(len(images), seconds),
            }

        return measure

    def _classes(self, generated: Generated, numbers: Sequence[int], features: Mapping[str, Tensor]) -> Columns:
        """Classes that were asked for, and those that a classifier among the networks sees."""
        wanted = [generated.label(number) for number in numbers]
        if self._classifier is None or None in wanted:
            return {}
        seen = self._classifier.predict(features[self._classifier.name])
        return {_WANTED: np.array(wanted), _SEEN: seen.numpy()}

    # ------------------------------------------------------------------------------------------------------------
    # All of them
    # ------------------------------------------------------------------------------------------------------------

    def _result(
        self,
        generated: Generated,
        facts: Mapping[str, Any],
        key: str,
        parts: Parts,
        reals: Sequence[ReferenceFeatures],
        trains: Sequence[ReferenceFeatures | None],
        pictures: Path | None,
    ) -> dict[str, Any]:
        columns, notes = parts.columns(*map(features_column, self.nets)), parts.notes()
        figures, distances = self._accuracy(columns), {}
        for number, (net, real, train) in enumerate(zip(self.nets, reals, trains, strict=True)):
            with merged_features(parts, net, len(columns[NUMBER])) as features:
                floor = self._floor(real, train, len(features))
                distances[net.name] = measure_distances(net, features, real.features, floor, self.force_fd)
                if number == 0:
                    figures |= _manifolds(net, features, real.features)
                if number == 0 and train is not None and self.train is not None:
                    nearest = Nearest.of(features, real.features, train.features)
                    figures["memorisation"] = {**nearest.figures(), "net": net.name, "unit": ""}
                    if pictures is not None:
                        picture = nearest.picture(generated, columns[NUMBER], self.train, train.numbers)
                        _save(picture, pictures / "neighbours.png")
        if notes.nonfinite:
            figures, distances = _unmeasured(figures), {name: _refused(entry) for name, entry in distances.items()}
        skipped = [{"id": name, "reason": reason} for name, reason in notes.skipped]
        for samples, reference in ((self.real, reals[0]), (self.train, trains[0])):
            if samples is not None and reference is not None:
                skipped += [{**entry, "id": f"{samples.name}/{entry['id']}"} for entry in reference.skipped]
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": "generation",
            "subject": {**facts, "generated_sha256": pixels_sha256(columns[DIGEST])},
            "protocol": self._protocol(reals[0], len(columns[NUMBER])),
            "skipped": skipped,
            "nonfinite": notes.nonfinite,
            "metrics": figures,
            "distances": distances,
            "cost": medians(columns, {"seconds_per_image": _SECONDS}),
            "missing": list(self.missing),
            "environment": environment(self.device),
            "key": key,
        }

    def _protocol(self, real: ReferenceFeatures, count: int) -> dict[str, Any]:
        return {
            **self.real.facts(),
            "pixels_sha256": real.pixels_sha256,
            "num_generated": count,
            "train": None if self.train is None else self.train.facts(),
            "bootstrap": dict(BOOTSTRAP),
        }

    def _accuracy(self, columns: Columns) -> dict[str, Any]:
        if self._classifier is None or _SEEN not in columns:
            return {}
        is_right = (columns[_SEEN] == columns[_WANTED]).astype(np.float64)
        of_real = {"value": self._classifier.test_accuracy, "unit": ""}
        return {"accuracy": mean_figure(is_right, np.arange(len(is_right))), REAL_ACCURACY: of_real}

    def _floor(
        self, real: ReferenceFeatures, train: ReferenceFeatures | None, num: int
    ) -> list[tuple[FeatureSet, FeatureSet]]:
        """Pairs of sets of real images: training images, as many as generated ones, and `real`; or halves of `real`."""
        if train is None or self.train is None:
            return [real.halves()]
        draws = FLOOR_DRAWS if real.features.shape[1] <= FEW_FEATURES else 1
        of_train, of_real = _labels(self.train, train), _labels(self.real, real)
        if self.train.source.class_names != self.real.source.class_names:
            of_train = of_real = None
        rows = [_like(of_train, of_real, len(train.features), num, draw) for draw in range(draws)]
        return [(Rows(train.features, numbers), real.features) for numbers in rows]


def _labels(samples: EvaluationSamples, features: ReferenceFeatures) -> Array | None:
    """The class of each row of features; None if an image has none."""
    labels = [samples.label(number) for number in features.numbers.tolist()]
    return None if None in labels else np.array(labels)


def _like(of_train: Array | None, of_real: Array | None, available: int, num: int, draw: int) -> Array:
    """Numbers of random training images with the class proportions of the real ones, as far as there are enough.

    Random proportions would raise the floor, and generated images have none.
    """
    order = numpy_generator(0, EvaluationStream.SPLIT, 1 + draw).permutation(available)
    if of_train is None or of_real is None:
        return np.sort(order[:num])
    counts = np.bincount(of_real)
    wanted = np.diff(np.round(np.cumsum(counts) * num / len(of_real)).astype(int), prepend=0)  # so that they add up
    chosen = [order[of_train[order] == label][:number] for label, number in enumerate(wanted)]
    return np.sort(np.concatenate(chosen))


def _manifolds(net: FeatureNet, generated: FeatureSet, real: FeatureSet) -> dict[str, Any]:
    if min(len(generated), len(real)) < LEAST_FOR_MANIFOLDS:
        return {}
    found = manifold_metrics(generated, real)
    return {name: {"value": value, "net": net.name, "unit": ""} for name, value in found._asdict().items()}


def _unmeasured(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures without their values, but for those of real images: an image isn't finite."""
    nothing = {"value": None, "reason": _NOT_FINITE}
    return {
        name: {"unit": entry["unit"], **nothing} if name != REAL_ACCURACY else entry for name, entry in figures.items()
    }


def _refused(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The distances on a network without their values, likewise."""
    nothing = {"value": None, "refused": _NOT_FINITE}
    return {**entry, "frechet": {**entry["frechet"], **nothing}, "kid": {**entry["kid"], **nothing}}


def _without_name(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol without the name of the data set, which changes no figure."""
    return {name: value for name, value in protocol.items() if name != "data"}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" … ({len(names)} in all)" if len(names) > 5 else "")


# ---------------------------------------------------------------- pictures


def _keep(folder: Path, numbers: Sequence[int], images: Tensor) -> None:
    """Writes those of the first few images that are in the batch."""
    for number, image in zip(numbers, images, strict=True):
        if number < NUM_SHOWN:
            _save(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), folder / f"{number:03d}.png")


def _save_grid(folder: Path, path: Path) -> None:
    """Arranges the images that `_keep` wrote in rows; the last one is filled up with white."""
    images = [torch.from_numpy(np.array(Image.open(file))) for file in sorted(folder.glob("*.png"))]
    if images:
        columns = min(COLUMNS, len(images))
        pixels = to_float(torch.stack(images).permute(0, 3, 1, 2))
        whole = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, -len(images) % columns), value=1.0)
        _save(comparison_grid(whole.split(columns), columns), path)


def _save_prompts(generated: Generated, path: Path) -> None:
    """Writes a line for each image in the grid with its prompt, where images have prompts."""
    prompts = [generated.prompt(number) for number in range(min(NUM_SHOWN, len(generated)))]
    if any(prompts):
        write_whole(path, "".join(f"{' '.join((prompt or '').split())}\n" for prompt in prompts).encode())


def _save(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as temporary:
        picture.save(temporary, "PNG")
