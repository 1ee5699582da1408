"""Measures how faithfully autoencoders and codecs reproduce images and clips.

Every subject is measured on the same pixels, rounded to 8 bits before and after, and its result is one JSON document
with the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.evaluation.distances import measure_distances
from ul_tokenizer.evaluation.environment import environment, peak_memory_bytes, reset_peak_memory
from ul_tokenizer.evaluation.figures import BOOTSTRAP, medians, pixel_figures, rate_figure
from ul_tokenizer.evaluation.measures import metrics
from ul_tokenizer.evaluation.nets.clips import changes
from ul_tokenizer.evaluation.nets.feature_nets import FeatureNet
from ul_tokenizer.evaluation.parts import NUMBER, Array, Batch, Columns, PartedJob, PartNotes, Parts
from ul_tokenizer.evaluation.reference_features import (
    DIGEST,
    ReferenceFeatures,
    digests_of,
    key_of,
    load_reference_features,
    pixels_sha256,
)
from ul_tokenizer.evaluation.results import FORMAT, VERSION, read_result, write_result
from ul_tokenizer.evaluation.runs import features_column, label_of_subject, merged_features, parts_folder, stem_of
from ul_tokenizer.evaluation.samples import EvaluationSamples
from ul_tokenizer.evaluation.subjects import Reconstruction, Subject
from ul_tokenizer.files import whole_file
from ul_tokenizer.processes import Processes

NUM_PICTURES = 8
LPIPS = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ReconstructionEvaluation:
    """What is measured of every subject, and on what.

    Args:
        samples: the originals.
        nets: networks for distances between the features of originals and of reconstructions.
        lpips: learned perceptual distance of two batches; None doesn't measure it.
        first_frame: first frame of clips that is compared; those before it were given to the subject.
        output: folder for results; None keeps none.
        references: file with the features of the originals for each net's name; others are kept in a cache.
        batch_size: samples per batch; it changes speed and memory, and what a mosaic holds.
        force_fd: see `measure_distances`.
        missing: what can't be measured and why, for the results.
        processes: those that share the work.
    """

    samples: EvaluationSamples
    nets: Sequence[FeatureNet] = ()
    lpips: LPIPS | None = None
    first_frame: int = 0
    output: Path | None = None
    references: Mapping[str, Path] = field(default_factory=dict)
    batch_size: int = 32
    force_fd: bool = False
    missing: Sequence[str] = ()
    processes: Processes = field(default_factory=Processes)

    def run(self, subject: Subject) -> dict[str, Any]:
        """Measures a subject, or reads its result if the output folder has it; every process gets it.

        Raises:
            ValueError: the subject doesn't take the samples, or no sample can be read.
            OSError: a result can't be written.
        """
        facts = subject.facts()
        forced = ["force_fd"] if self.force_fd else []  # else the refusal of an earlier run would be read again
        key = key_of(facts, self._protocol(), [dict(net.facts()) for net in self.nets], self._of_lpips(), *forced)
        path = None if self.output is None else self.output / f"{stem_of(facts)}-{key[:8]}.json"
        if path is not None and path.exists() and (known := read_result(path))["key"] == key:
            return known
        references = [self._reference(net) for net in self.nets]
        with parts_folder(path, key, self.processes) as folder:
            reset_peak_memory(subject.device)
            job = PartedJob(
                self.samples,
                self._measured(subject, path),
                folder,
                key,
                self.batch_size,
                self.processes,
                label_of_subject(facts),
            )
            parts = job.run()
            peak = max(self.processes.gather(peak_memory_bytes(subject.device) or 0)) or None
            result = None
            with self.processes.together():
                if self.processes.is_main:
                    result = self._result(subject, facts, key, parts, references, peak)
                    if path is not None:
                        write_result(path, result)
            (result, *_) = self.processes.gather(result)
        assert result is not None  # of the main process
        return result

    # ------------------------------------------------------------------------------------------------------------
    # A batch
    # ------------------------------------------------------------------------------------------------------------

    def _measured(self, subject: Subject, path: Path | None) -> Callable[[Batch, PartNotes], Columns]:
        def measure(batch: Batch, notes: PartNotes) -> Columns:
            pixels = torch.stack([sample.pixels for sample in batch.samples])
            again = subject.reconstruct(pixels, batch.numbers)
            notes.nonfinite += [
                s.id for s, fine in zip(batch.samples, again.is_finite.tolist(), strict=True) if not fine
            ]
            if path is not None:
                _keep_pictures(path.with_suffix(".pictures"), batch, again.pixels, len(self.samples))
            columns = {
                **self._compared(pixels, again),
                **{features_column(net): net(again.pixels) for net in self.nets},
            }
            return {name: values.numpy() for name, values in columns.items()} | {DIGEST: digests_of(batch)}

        return measure

    def _compared(self, pixels: Tensor, again: Reconstruction) -> dict[str, Tensor]:
        count, share = len(pixels), torch.full((len(pixels),), 1 / len(pixels), dtype=torch.float64)
        is_clip, compared = pixels.ndim == 5, (pixels, again.pixels)
        if is_clip:
            compared = pixels[:, :, self.first_frame :], again.pixels[:, :, self.first_frame :]
        figures = frame_figures(*compared, self.lpips)
        if is_clip and compared[0].shape[2] > 1:
            figures["flicker"], figures["source_change"] = changes(*compared)
        for values in figures.values():
            values[~again.is_finite] = torch.nan
        return figures | {
            "bits": again.bits,
            "pixels": torch.full((count,), float(pixels[0, 0].numel()), dtype=torch.float64),
            "encode_seconds": again.encode_seconds * share,
            "decode_seconds": again.decode_seconds * share,
        }

    # ------------------------------------------------------------------------------------------------------------
    # All of them
    # ------------------------------------------------------------------------------------------------------------

    def _result(
        self,
        subject: Subject,
        facts: Mapping[str, Any],
        key: str,
        parts: Parts,
        references: Sequence[ReferenceFeatures],
        peak: int | None,
    ) -> dict[str, Any]:
        columns, notes = parts.columns(*map(features_column, self.nets)), parts.notes()
        if not columns:
            raise ValueError(f"data must hold images that can be read, got none among {len(self.samples)}.")
        groups = self.samples.groups[columns[NUMBER]]
        seen = pixels_sha256(columns[DIGEST])
        protocol = {
            **self._protocol(),
            "data": self.samples.name,
            "pixels_sha256": seen,
            "bootstrap": dict(BOOTSTRAP),
        }
        seconds = medians(columns, {"encode_seconds": "encode_seconds", "decode_seconds": "decode_seconds"})
        whole = None if None in seconds.values() else sum(filter(None, seconds.values()))
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": "prediction" if self.first_frame else "reconstruction",
            "subject": dict(facts),
            "protocol": protocol,
            "skipped": [{"id": name, "reason": reason} for name, reason in notes.skipped],
            "nonfinite": notes.nonfinite,
            "metrics": {**pixel_figures(columns, groups), **self._rate(subject, columns, groups)},
            "distances": self._distances(parts, references, seen, len(groups), bool(notes.nonfinite)),
            "cost": {
                "seconds_per_image": whole,
                **seconds,
                "peak_memory_bytes": peak,
                "flops": subject.flops(tuple(self._first_shape(columns))),
            },
            "missing": list(self.missing),
            "environment": environment(subject.device),
            "key": key,
        }

    def _rate(self, subject: Subject, columns: Columns, groups: Array) -> dict[str, Any]:
        if subject.kind_of_bits is None:
            return {}
        return {"bits_per_pixel": rate_figure(columns["bits"], columns["pixels"], groups, subject.kind_of_bits)}

    def _distances(
        self, parts: Parts, references: Sequence[ReferenceFeatures], seen: str, count: int, has_nonfinite: bool
    ) -> dict[str, Any]:
        entries = {}
        for net, reference in zip(self.nets, references, strict=True):
            if reference.pixels_sha256 != seen:
                raise ValueError(
                    f"reference {reference.features.path} holds features of images that have changed since."
                )
            with merged_features(parts, net, count) as features:
                entry = measure_distances(net, features, reference.features, [reference.halves()], self.force_fd)
            if has_nonfinite:
                reason = {
                    "value": None,
                    "refused": "some reconstructions are not finite; nonfinite names them.",
                }
                entry |= {"frechet": {**entry["frechet"], **reason}, "kid": {**entry["kid"], **reason}}
            entries[net.name] = entry
        return entries

    def _reference(self, net: FeatureNet) -> ReferenceFeatures:
        path = self.references.get(net.name)
        return load_reference_features(self.samples, net, self.processes, path=path, batch_size=self.batch_size)

    def _protocol(self) -> dict[str, Any]:
        """All but the name of the data set, which doesn't change figures."""
        facts = {name: value for name, value in self.samples.facts().items() if name != "data"}
        return {**facts, "first_frame": self.first_frame}

    def _of_lpips(self) -> dict[str, Any] | None:
        return None if self.lpips is None else dict(getattr(self.lpips, "facts", dict)())

    def _first_shape(self, columns: Columns) -> Sequence[int]:
        return self.samples.read(int(columns[NUMBER][0])).pixels.shape


def frame_figures(pixels: Tensor, again: Tensor, lpips: LPIPS | None) -> dict[str, Tensor]:
    """MSE, PSNR, SSIM, MS-SSIM, LPIPS and gradient energies of each sample, (B,) float64; for clips means over frames.

    Args:
        pixels: uint8, (B, 3, H, W) or (B, 3, T, H, W).
        again: likewise.
        lpips: as in `ReconstructionEvaluation`.
    """
    count, frames = len(pixels), 1 if pixels.ndim == 4 else pixels.shape[2]
    if pixels.ndim == 5:
        pixels, again = (clip.transpose(1, 2).flatten(0, 1) for clip in (pixels, again))
    figures = {"mse": metrics.squared_errors(pixels, again)}
    figures["psnr"] = metrics.psnr(figures["mse"])
    figures["gradient_energy"] = metrics.gradient_energy(again)
    figures["source_gradient_energy"] = metrics.gradient_energy(pixels)
    if min(pixels.shape[-2:]) >= metrics.SSIM_MIN_SIDE:
        figures["ssim"] = metrics.ssim(pixels, again)
    if min(pixels.shape[-2:]) >= metrics.MS_SSIM_MIN_SIDE:
        figures["ms_ssim"] = metrics.ms_ssim(pixels, again)
    if lpips is not None:
        figures["lpips"] = lpips(pixels, again).double()
    per_frame = {name: values.view(count, frames) for name, values in figures.items()}
    means = {name: values.mean(1) for name, values in per_frame.items()}
    return means if frames == 1 else {**means, "mse_per_frame": per_frame["mse"].clone()}


def _keep_pictures(folder: Path, batch: Batch, again: Tensor, count: int) -> None:
    """Writes originals and reconstructions of a few samples, spread over all, as PNG; of clips, the middle frame."""
    wanted = min(NUM_PICTURES, count)
    kept = {place * count // wanted: place for place in range(wanted)}
    for number, sample, result in zip(batch.numbers, batch.samples, again, strict=True):
        if number not in kept:
            continue
        for kind, pixels in (("original", sample.pixels), ("reconstruction", result)):
            picture = pixels if pixels.ndim == 3 else pixels[:, pixels.shape[1] // 2]
            with whole_file(folder / f"{kind}-{kept[number]:03d}.png") as temporary:
                Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(temporary, "PNG")
