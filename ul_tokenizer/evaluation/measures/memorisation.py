"""What a generator has memorised: generated images that are nearer to a training image than unseen real ones are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ul_tokenizer.evaluation.generated import Generated
from ul_tokenizer.evaluation.grids import comparison_grid
from ul_tokenizer.evaluation.measures.feature_sets import FeatureSet
from ul_tokenizer.evaluation.measures.manifold import nearest_neighbours
from ul_tokenizer.evaluation.parts import Array, Batch
from ul_tokenizer.evaluation.samples import EvaluationSamples
from ul_tokenizer.media.pixels import to_float

NUM_NEIGHBOURS = 8  # generated images of a line, beside the training images nearest to them
GAP = 12  # pixels between the pairs of lines
NEAR = 0.01  # the part of unseen real images that is as near as what counts as memorised


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest training image, of generated images and of real ones that training didn't see."""

    of_generated: Array  # (N,)
    rows: Array  # (N,), which training image
    of_real: Array  # (M,)

    @classmethod
    def of(cls, generated: FeatureSet, real: FeatureSet, train: FeatureSet) -> Nearest:
        """Measures them between features."""
        near, near_of_real = nearest_neighbours(generated, train), nearest_neighbours(real, train)
        distances, rows, of_real = near.distances, near.indices, near_of_real.distances
        return cls(np.asarray(distances)[:, 0], np.asarray(rows)[:, 0], np.asarray(of_real)[:, 0])

    def figures(self) -> dict[str, float]:
        """The share and number of generated images that are nearer than all but 1 % of the real ones, and medians."""
        closest = float(np.quantile(self.of_real, NEAR))
        is_near = self.of_generated < closest
        return {
            "value": float(is_near.mean()),
            "count": int(is_near.sum()),
            "nearer_than": closest,
            "median": float(np.median(self.of_generated)),
            "median_of_real": float(np.median(self.of_real)),
        }

    def picture(self, generated: Generated, numbers: Array, train: EvaluationSamples, of_train: Array) -> Image.Image:
        """Two pairs of lines, generated images above and the training images nearest to them below.

        The first pair has the generated images nearest to a training image, nearest first. The second pair has images
        spread evenly over all distances, as a typical sample.

        Args:
            generated: the generated images.
            numbers: (N,), number of the image of each row.
            train: the training images.
            of_train: their numbers, likewise.
        """
        order = np.argsort(self.of_generated, kind="stable")
        spread = order[np.linspace(0, len(order) - 1, NUM_NEIGHBOURS).round().astype(int)]
        pairs = []
        for places in (order[:NUM_NEIGHBOURS], spread):
            wanted = [int(numbers[place]) for place in places]
            images, _ = generated.images(Batch(wanted, [generated.read(number) for number in wanted]))
            found = [train.read(int(of_train[self.rows[place]])).pixels for place in places]
            pairs.append(comparison_grid([to_float(images), to_float(torch.stack(found))], NUM_NEIGHBOURS))
        picture = Image.new("RGB", (pairs[0].width, 2 * pairs[0].height + GAP), "white")
        for number, pair in enumerate(pairs):
            picture.paste(pair, (0, number * (pair.height + GAP)))
        return picture
