"""The reference for generated images: a classifier trained on the real ones, and its features of them, made once.

A cache folder holds, per pair of data sets, `classifier.safetensors`, `features.safetensors` and, written last with the
checksums of both, `classifier.json`. Files that are incomplete or were changed are ignored and made again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ul_tokenizer.evaluation.classifier import RECIPE, SmallClassifier, Trained, judge, train_classifier
from ul_tokenizer.evaluation.frechet import Gaussian, frechet_distance
from ul_tokenizer.evaluation.labelled_images import LabelledImages, check_alike
from ul_tokenizer.files import sha256_of, whole_file, write_json

CACHE = Path("~/.cache/ul_tokenizer/classifiers")
FLOOR_DRAWS = 10  # each costs milliseconds; on Fashion-MNIST, 10,000 images each, they spread by a tenth
_WEIGHTS, _FEATURES, _FACTS = "classifier.safetensors", "features.safetensors", "classifier.json"


@dataclass(frozen=True)
class Reference:
    """Real images, as the classifier sees them.

    Attributes:
        classifier: in evaluation mode.
        class_names: in the order of the labels.
        image_shape: (C, H, W), with one channel for grey data.
        train_features: (N, 128), fp32.
        train_labels: (N,), int64.
        test_features: (M, 128), fp32.
        test_labels: (M,), int64.
        test_accuracy: accuracy of the classifier on the real test set, about the best that generated images can reach.
        digest: hash of the data, the recipe and the seed; figures with different digests can't be compared.
    """

    classifier: SmallClassifier
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    test_accuracy: float
    digest: str

    def distance(self, features: Tensor) -> float:
        """Fréchet distance of features (N, 128) to those of the whole test set."""
        return frechet_distance(Gaussian.of(features), Gaussian.of(self.test_features))

    def floor(self, num_images: int | None = None) -> float:
        """Distance between real training images and the test set: of all, or of random ones (mean of several draws).

        The draws have the class proportions of the test set, as far as there are enough images. Random proportions
        would raise the floor, and generated images have none.
        """
        if num_images is None:
            return self.distance(self.train_features)
        generator = torch.Generator().manual_seed(0)
        draws = (self._draw(num_images, generator) for _ in range(FLOOR_DRAWS))
        return sum(self.distance(self.train_features[draw]) for draw in draws) / FLOOR_DRAWS

    def _draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        counts = self.test_labels.bincount(minlength=len(self.class_names))
        edges = (counts.cumsum(0) * num_images / len(self.test_labels)).round().long()  # so that they add up
        wanted = edges.diff(prepend=edges.new_zeros(1)).tolist()
        order = torch.randperm(len(self.train_labels), generator=generator)
        return torch.cat([order[self.train_labels[order] == label][:number] for label, number in enumerate(wanted)])


def load_reference(
    train: str | Path | LabelledImages,
    test: str | Path | LabelledImages,
    *,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Reference:
    """Trains the classifier on `train`, or loads it from the cache of an earlier call.

    Args:
        train: folder with a subfolder of equally large square images for each class.
        test: another such folder, of the same classes.
        seed: of the classifier's weights and batches.
        cache_dir: folder of the cache; None for `CACHE`.
        device: device of the classifier.

    Raises:
        ValueError: folders without classes or with different ones, or images that are unreadable or of several sizes.
    """
    train, test = _labelled(train), _labelled(test)
    check_alike(train, test)
    digest = hashlib.sha256(f"{RECIPE} {seed} {train.digest} {test.digest}".encode()).hexdigest()[:16]
    folder = Path(CACHE if cache_dir is None else cache_dir).expanduser() / digest
    cached = _read(folder, digest, train, test)
    if cached is None:
        print(f"training a classifier on {len(train)} images of {train.root}, once", file=sys.stderr)
        trained = train_classifier(train, test, seed, device)
        _write(folder, trained, train, test, seed)
        cached = _read(folder, digest, train, test)
    if cached is None:
        raise OSError(f"the classifier can't be read back from {folder}.")
    cached.classifier.to(device)
    return cached


def _labelled(images: str | Path | LabelledImages) -> LabelledImages:
    return images if isinstance(images, LabelledImages) else LabelledImages(Path(images))


# ---------------------------------------------------------------- the cache


def _write(folder: Path, trained: Trained, train: LabelledImages, test: LabelledImages, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FACTS).unlink(missing_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in trained.classifier.state_dict().items()}
    features = {
        name: judge(trained.classifier, part.images).features for name, part in (("train", train), ("test", test))
    }
    for name, tensors in ((_WEIGHTS, weights), (_FEATURES, features)):
        with whole_file(folder / name) as temporary:
            save_file(tensors, temporary)
    facts = {
        "recipe": RECIPE,
        "seed": seed,
        "image_shape": list(train.images.shape[1:]),
        "classes": list(train.class_names),
        "train": {"root": str(train.root), "images": len(train), "listing_sha256": train.digest},
        "test": {"root": str(test.root), "images": len(test), "listing_sha256": test.digest},
        "test_accuracy": trained.test_accuracy,
        "seconds": round(trained.seconds, 1),
        "sha256": {name: sha256_of(folder / name) for name in (_WEIGHTS, _FEATURES)},
    }
    write_json(folder / _FACTS, facts)


def _read(folder: Path, digest: str, train: LabelledImages, test: LabelledImages) -> Reference | None:
    """Reads the cache; None if it is missing or incomplete."""
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if any(sha256_of(folder / name) != facts["sha256"][name] for name in (_WEIGHTS, _FEATURES)):
            return None
        channels, height, width = facts["image_shape"]
        accuracy = float(facts["test_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    classifier = SmallClassifier(channels, len(train.class_names))
    classifier.load_state_dict(load_file(folder / _WEIGHTS))
    classifier.eval().requires_grad_(False)
    features = load_file(folder / _FEATURES)
    return Reference(
        classifier=classifier,
        class_names=train.class_names,
        image_shape=(channels, height, width),
        train_features=features["train"],
        train_labels=train.labels,
        test_features=features["test"],
        test_labels=test.labels,
        test_accuracy=accuracy,
        digest=digest,
    )
