"""The reference for generated images: a classifier trained on the real ones, once.

A cache folder holds, per pair of data sets, `classifier.safetensors` and, written last with its checksum,
`classifier.json`. Files that are incomplete or were changed are ignored and made again.
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

from ul_tokenizer.evaluation.nets.classifier import RECIPE, SmallClassifier, Trained, train_classifier
from ul_tokenizer.evaluation.nets.labelled_images import LabelledImages, check_alike
from ul_tokenizer.files import sha256_of, whole_file, write_json

CACHE = Path("~/.cache/ul_tokenizer/classifiers")
_WEIGHTS, _FACTS = "classifier.safetensors", "classifier.json"


@dataclass(frozen=True)
class Reference:
    """A classifier of real images.

    Attributes:
        classifier: in evaluation mode.
        class_names: in the order of the labels.
        image_shape: (C, H, W), with one channel for grey data.
        test_accuracy: accuracy of the classifier on the real test set, about the best that generated images can reach.
        digest: hash of the data, the recipe and the seed; figures with different digests can't be compared.
    """

    classifier: SmallClassifier
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    test_accuracy: float
    digest: str


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
    cached = _read(folder, digest, train)
    if cached is None:
        print(f"training a classifier on {len(train)} images of {train.root}, once", file=sys.stderr)
        trained = train_classifier(train, test, seed, device)
        _write(folder, trained, train, test, seed)
        cached = _read(folder, digest, train)
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
    with whole_file(folder / _WEIGHTS) as temporary:
        save_file(weights, temporary)
    facts = {
        "recipe": RECIPE,
        "seed": seed,
        "image_shape": list(train.images.shape[1:]),
        "classes": list(train.class_names),
        "train": {"root": str(train.root), "images": len(train), "listing_sha256": train.digest},
        "test": {"root": str(test.root), "images": len(test), "listing_sha256": test.digest},
        "test_accuracy": trained.test_accuracy,
        "seconds": round(trained.seconds, 1),
        "sha256": {_WEIGHTS: sha256_of(folder / _WEIGHTS)},
    }
    write_json(folder / _FACTS, facts)


def _read(folder: Path, digest: str, train: LabelledImages) -> Reference | None:
    """Reads the cache; None if it is missing or incomplete."""
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if sha256_of(folder / _WEIGHTS) != facts["sha256"][_WEIGHTS]:
            return None
        channels, height, width = facts["image_shape"]
        accuracy = float(facts["test_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    classifier = SmallClassifier(channels, len(train.class_names))
    classifier.load_state_dict(load_file(folder / _WEIGHTS))
    classifier.eval().requires_grad_(False)
    return Reference(classifier, train.class_names, (channels, height, width), accuracy, digest)
