"""Breaks the code on purpose, a line at a time, and says whether the tests see it.

`python tests/mutations.py [word …]` works on temporary copies of the tree; words choose mutations by their names.
The exit status is 1 if a mutation survives, and 2 if a mutation no longer fits the code or the tests fail before
anything is broken. pytest doesn't collect this file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 2

OBJECTIVE = "ul_tokenizer/diffusion/objective.py"
SCHEDULER = "ul_tokenizer/schedulers/log_snr.py"
ALGORITHM = "ul_tokenizer/training/algorithm1.py"
AUTOENCODER = "ul_tokenizer/models/autoencoder.py"
DECODING = "ul_tokenizer/models/decoding.py"
LATENT = "ul_tokenizer/models/latent_distribution.py"
ATTENTION = "ul_tokenizer/models/attention.py"
LAYERS = "ul_tokenizer/models/layers.py"
TILING = "ul_tokenizer/models/tiling.py"

DOWNLOAD = "ul_tokenizer/hub/download.py"
TEMPORAL = "ul_tokenizer/models/temporal.py"
FRAME_TIMES = "ul_tokenizer/media/frame_times.py"
VIDEOS = "ul_tokenizer/media/videos.py"

ON_OBJECTIVE = "tests/diffusion/test_objective.py"
ON_SCHEDULER = "tests/schedulers/test_log_snr.py"
ON_ALGORITHM = "tests/training/test_algorithm1.py"
ON_AUTOENCODER = "tests/models/test_autoencoder.py"
ON_LAYERS = "tests/models/test_layers.py"
ON_TILING = "tests/models/test_tiling.py"
ON_PULL = "tests/hub/test_pull.py"
ON_VIDEO = "tests/models/test_video.py"
ON_VIDEOS = "tests/media/test_videos.py"


@dataclass(frozen=True)
class Mutation:
    """One line that goes wrong: `old`, which stands once in `file`, becomes `new`; `tests` should turn red."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "the decoder weight has the printed sign, sigmoid(λ − b)",
        OBJECTIVE,
        "torch.sigmoid(self.bias - logsnr)",
        "torch.sigmoid(logsnr - self.bias)",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the decoder loss has the printed sign, +dλ/dt",
        OBJECTIVE,
        "return 0.5 * -schedule.dlogsnr_dt(t) * weighting.weight(logsnr) * error",
        "return 0.5 * schedule.dlogsnr_dt(t) * weighting.weight(logsnr) * error",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the decoder loss drops e^b",
        OBJECTIVE,
        "return self.loss_factor * torch.sigmoid(self.bias - logsnr)",
        "return self.loss_factor * math.exp(-self.bias) * torch.sigmoid(self.bias - logsnr)",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the losses are means over dimensions",
        OBJECTIVE,
        "return x.square().flatten(1).sum(1)",
        "return x.square().flatten(1).mean(1)",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the two terms have separate divisors",
        OBJECTIVE,
        "(prior_weight * self.latent + self.decoder_boosted) / divisor",
        "(prior_weight * self.latent + self.decoder_boosted / divisor)",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the terminal KL is left out",
        OBJECTIVE,
        "return self.prior + self.terminal_kl -",
        "return self.prior -",
        ON_OBJECTIVE,
    ),
    Mutation(
        "with a normal prior, the prior's gradient still reaches the encoder",
        ALGORITHM,
        "z_prior = z_clean if encoder_pays_prior else z_clean.detach()",
        "z_prior = z_clean",
        ON_ALGORITHM,
    ),
    Mutation(
        "the divergence from a normal prior is that of the noisiest level",
        ALGORITHM,
        "normal_kl(z_clean, self.prior_schedule.logsnr_max)",
        "normal_kl(z_clean, self.prior_schedule.logsnr_min)",
        ON_ALGORITHM,
    ),
    Mutation(
        "the weight of the divergence from a normal prior is left out",
        ALGORITHM,
        "self.variant.kl_weight * normal_kl(",
        "normal_kl(",
        ON_ALGORITHM,
    ),
    Mutation(
        "the entropy that a learned variance adds is not subtracted",
        OBJECTIVE,
        "return self.prior + self.terminal_kl - self.variance_gain",
        "return self.prior + self.terminal_kl",
        ON_ALGORITHM,
    ),
    Mutation(
        "a learned log-variance is taken for a deviation",
        OBJECTIVE,
        "z_clean.float() + (0.5 * logvar.float()).exp() * noise.float()",
        "z_clean.float() + logvar.float().exp() * noise.float()",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the gain of a learned variance forgets the level of z_0",
        OBJECTIVE,
        "softplus(logvar.float() + logsnr)",
        "softplus(logvar.float())",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the prior of a single stage is not weighted",
        ALGORITHM,
        "loss_z = self.variant.latent_level.weight(logsnr_z) * loss_z",
        "loss_z = loss_z",
        ON_ALGORITHM,
    ),
    Mutation(
        "a single stage gives its decoder the usual level",
        ALGORITHM,
        "return self.variant.latent_level.level(noise.t_latent)",
        "return torch.full_like(noise.t_prior, self.prior_schedule.logsnr_max)",
        ON_ALGORITHM,
    ),
    Mutation(
        "the weight of a random level is its distribution function",
        OBJECTIVE,
        "((last - self._cdf(logsnr)) / (last - first))",
        "((self._cdf(logsnr) - first) / (last - first))",
        ON_OBJECTIVE,
    ),
    Mutation(
        "the Gaussian loss has the weight of its level",
        OBJECTIVE,
        "torch.exp(weighting.bias - logsnr) * eps_squared_error",
        "eps_squared_error",
        ON_OBJECTIVE,
    ),
    Mutation(
        "a decoder of the squared error is trained at all levels",
        ALGORITHM,
        "torch.ones_like(noise.t_decoder) if one_step else",
        "noise.t_decoder if one_step else",
        ON_ALGORITHM,
    ),
    Mutation(
        "the losses are computed in the dtype of the networks",
        OBJECTIVE,
        "prediction, clean, noise = prediction.float(), clean.float(), noise.float()",
        "prediction, clean, noise = prediction, clean, noise",
        ON_OBJECTIVE,
    ),
    Mutation(
        "σ₀ is taken for a variance",
        LATENT,
        "return diffuse(self.latent, noise, self.logsnr).to(self.latent.dtype)",
        "return (self.mean + self.std.sqrt() * noise).to(self.latent.dtype)",
        ON_AUTOENCODER,
    ),
    Mutation(
        "in training, too, σ₀ is taken for a variance",
        ALGORITHM,
        "diffuse(z_clean, noise.latent, logsnr_0)",
        "diffuse(z_clean, noise.latent * 0.0818**-0.5, logsnr_0)",
        ON_ALGORITHM,
    ),
    Mutation(
        "the prior's z_t is drawn from z_0",
        ALGORITHM,
        "z_t = diffuse(z_prior, noise.prior, logsnr_z)",
        "z_t = diffuse(diffuse(z_prior, noise.latent, 0 * logsnr_z + 5), noise.prior, logsnr_z)",
        ON_ALGORITHM,
    ),
    Mutation(
        "the prior's gradient does not reach the encoder through its input",
        ALGORITHM,
        "v_z = self.prior(z_t, logsnr_z)",
        "v_z = self.prior(z_t.detach(), logsnr_z)",
        ON_ALGORITHM,
    ),
    Mutation(
        "the prior's gradient does not reach the encoder through its target",
        ALGORITHM,
        "loss_z = prior_loss(v_z, z_prior, ",
        "loss_z = prior_loss(v_z, z_prior.detach(), ",
        ON_ALGORITHM,
    ),
    Mutation(
        "the decoder is conditioned on z_clean",
        ALGORITHM,
        "z_0 = scale_gradient(diffuse(z_clean, noise.latent, logsnr_0), ",
        "z_0 = scale_gradient(z_clean, ",
        ON_ALGORITHM,
    ),
    Mutation(
        "the encoder feels the decoder's boost",
        ALGORITHM,
        "boost**-progress",
        "boost**0",
        ON_ALGORITHM,
    ),
    Mutation(
        "the scheduler goes on past logsnr_max",
        SCHEDULER,
        "top, bottom = self.noise_schedule.logsnr_max, self.noise_schedule.logsnr_min",
        "top, bottom = self.noise_schedule.logsnr_max + 5, self.noise_schedule.logsnr_min",
        ON_SCHEDULER,
    ),
    Mutation(
        "the scheduler ends with x̂",
        SCHEDULER,
        "prev_sample, pred_original_sample = z_s.to(sample.dtype), x.to(sample.dtype)",
        "prev_sample, pred_original_sample = x.to(sample.dtype), x.to(sample.dtype)",
        ON_SCHEDULER,
    ),
    Mutation(
        "one generator makes the noise of the whole batch",
        LATENT,
        "randn_tensor(shape, generator=generator, ",
        "randn_tensor(shape, generator=generator[0] if isinstance(generator, list) else generator, ",
        ON_AUTOENCODER,
    ),
    Mutation(
        "one step returns the next noisy sample",
        DECODING,
        "return x",
        "return ode_step(x_t, x, t, s)",
        ON_AUTOENCODER,
    ),
    Mutation(
        "the latent is embedded in every step",
        DECODING,
        "logsnr.expand(batch_size), latent_features, rotary)",
        "logsnr.expand(batch_size), decoder.embed_latents(z, level), rotary)",
        ON_AUTOENCODER,
    ),
    Mutation(
        "every tile draws noise of its own",
        AUTOENCODER,
        "self._denoise(tile.of(z), tile.of(x_1, ratio), steps, rotary)",
        "self._denoise(tile.of(z), torch.randn_like(tile.of(x_1, ratio)), steps, rotary)",
        ON_TILING,
    ),
    Mutation(
        "the sampler of the second order forgets the level before",
        DECODING,
        "x if is_first_order or x_last is None else",
        "x if True else",
        ON_AUTOENCODER,
    ),
    Mutation(
        "a clip's later parts forget the earlier ones",
        AUTOENCODER,
        "latent, caches = self._encode_part(part, caches)",
        "latent, caches = self._encode_part(part, None)",
        ON_VIDEO,
    ),
    Mutation(
        "tiles are averaged and not blended",
        TILING,
        "ramps.append(torch.minimum(rising, falling).clamp(0, 1))",
        "ramps.append((torch.minimum(rising, falling) > 0).float())",
        ON_TILING,
    ),
    Mutation(
        "keys have no positions",
        ATTENTION,
        "key = apply_rotary(attn.norm_k(key), rotary)",
        "key = attn.norm_k(key)",
        ON_LAYERS,
    ),
    Mutation(
        "norms run in half precision",
        LAYERS,
        "return F.layer_norm(x.float(), (self.channels,), weight, bias, self.eps).to(x.dtype)",
        "return F.layer_norm(x, (self.channels,), self.weight, self.bias, self.eps)",
        ON_LAYERS,
    ),
    Mutation(
        "guidance pulls towards no class",
        "ul_tokenizer/diffusion/guidance.py",
        "unconditional + self.scale * (conditional - unconditional)",
        "conditional + self.scale * (unconditional - conditional)",
        "tests/diffusion/test_guidance.py",
    ),
    Mutation(
        "a text's padding is read",
        "ul_tokenizer/models/conditioning.py",
        "if mask is None else mask.bool()",
        "if mask is None else torch.ones_like(mask).bool()",
        "tests/models/test_conditioning.py",
    ),
    Mutation(
        "the base model is trained on the noisy mean rather than on z_clean",
        "ul_tokenizer/models/any_autoencoder.py",
        "encoded.latent_dist.mode() if direct is None else direct",
        "encoded.latent_dist.mode()",
        "tests/training/test_stage2.py",
    ),
    Mutation(
        "labels are dropped by the place in the batch",
        "ul_tokenizer/training/stage2.py",
        "draws.pick(torch.rand(len(draws.of_step), generator=generator) < probability, device)",
        "torch.rand(len(draws.of_step), generator=generator)[: len(draws.local)] < probability",
        "tests/training/test_stage2.py",
    ),
    Mutation(
        "the last latents of a data set sorted by class are held out",
        "ul_tokenizer/training/stage2_data.py",
        "by_class[((np.arange(count) + random.random()) * len(labels) / count).astype(np.int64)]",
        "np.arange(len(labels) - count, len(labels))",
        "tests/training/test_stage2_data.py",
    ),
    Mutation(
        "steps without context leave weights without a gradient",
        "ul_tokenizer/training/denoising.py",
        "loss if context is not None else loss + self._zero_of_unused_weights(z_clean)",
        "loss",
        "tests/training/test_stage2_clips.py",
    ),
    Mutation(
        "a dropped caption is read",
        "ul_tokenizer/training/text.py",
        "self.mask & ~is_dropped[:, None]",
        "self.mask",
        "tests/training/test_text.py",
    ),
    Mutation(
        "a shard's line is written before its file",
        "ul_tokenizer/latents/writer.py",
        "        write_whole(path, content)\n",
        "",
        "tests/latents/test_latents.py",
    ),
    Mutation(
        "what a killed run left of a line stays",
        "ul_tokenizer/latents/writer.py",
        "            cut_off_partial_line(manifest)\n",
        "",
        "tests/latents/test_latents.py",
    ),
    Mutation(
        "processes share samples",
        "ul_tokenizer/latents/encode.py",
        "mine = range(self.rank, len(self.source), self.world_size)",
        "mine = range(len(self.source))",
        "tests/test_cli_encode_dataset.py",
    ),
    Mutation(
        "the hub's files are not compared with their hashes",
        DOWNLOAD,
        "return made.hexdigest() == digest",
        "return True",
        ON_PULL,
    ),
    Mutation(
        "the hub is asked for a commit that is cached",
        DOWNLOAD,
        "if known := self._read_record(_as_commit(revision)):",
        "if known := self._read_record(None):",
        ON_PULL,
    ),
    Mutation(
        "the hub's card loses what a person wrote",
        "ul_tokenizer/publish/card_merge.py",
        'if found["name"] in untouched else found[0]',
        "if True else found[0]",
        "tests/publish/test_card_merge.py",
    ),
    Mutation(
        "in time, the encoder sees the next frame",
        TEMPORAL,
        "h = repeat_first(h, KERNEL - 1) if history is None else torch.cat([history, h], dim=1)",
        "h = torch.cat([h[:, :1], h, h[:, -1:]], dim=1) if history is None else torch.cat([history, h], dim=1)",
        ON_VIDEO,
    ),
    Mutation(
        "in time, a part forgets the one before",
        TEMPORAL,
        "if history is None else torch.cat([history, h], dim=1)",
        "if history is None else repeat_first(h, KERNEL - 1)",
        ON_VIDEO,
    ),
    Mutation(
        "inflated weights start on the saddle",
        TEMPORAL,
        "UNFOLD_GAIN = 0.2",
        "UNFOLD_GAIN = 0.0",
        ON_VIDEO,
    ),
    Mutation(
        "the frames of a latent change places",
        TEMPORAL,
        "frames = torch.cat([anchored[..., 1:, :] + last, last], dim=-2)",
        "frames = torch.cat([last, anchored[..., 1:, :] + last], dim=-2)",
        ON_VIDEO,
    ),
    Mutation(
        "an image differs from itself",
        TEMPORAL,
        "grouped[:, :, :-1] - last], dim=2)",
        "grouped[:, :, :-1]], dim=2)",
        ON_VIDEO,
    ),
    Mutation(
        "times that a container rounds are taken at their word",
        FRAME_TIMES,
        "return EXACT if tick >= 0.9 * period else max(EXACT, min(tick, period / 4))",
        "return EXACT",
        ON_VIDEOS,
    ),
    Mutation(
        "the last frame lasts as long as all of the file before a seek",
        FRAME_TIMES,
        "(last.time - first.time) / (count - 1)",
        "last.time / (count - 1)",
        ON_VIDEOS,
    ),
    Mutation(
        "AVI's order of decoding is taken for times",
        VIDEOS,
        'frame.dts if stream.container.format.name == "avi" else frame.pts',
        "frame.pts",
        ON_VIDEOS,
    ),
    Mutation(
        "a seek that ends behind its aim is taken",
        VIDEOS,
        "if found is None or found <= stamp:",
        "if True:",
        ON_VIDEOS,
    ),
    Mutation(
        "diffusers forgets us once a library asks whether it is installed",
        "ul_tokenizer/registration.py",
        "        for finder in sys.meta_path:\n",
        "        sys.meta_path.remove(self)\n        for finder in list(sys.meta_path):\n",
        "tests/test_registration.py",
    ),
    Mutation(
        "a named model silently gives way to the default",
        "ul_tokenizer/cli/models.py",
        "options.name or DEFAULT_MODELS[kind]",
        "DEFAULT_MODELS[kind]",
        "tests/test_cli_video.py",
    ),
    Mutation(
        "the latents of videos are decoded as images",
        "ul_tokenizer/cli/decode.py",
        "models.videos if job.kind is Kind.video else models.images",
        "models.images",
        "tests/test_cli_video.py",
    ),
    Mutation(
        "the bits of a video are those of its last piece",
        "ul_tokenizer/evaluation/whole_videos.py",
        "total += float(latent_bits(",
        "total = float(latent_bits(",
        "tests/test_cli_video.py",
    ),
    Mutation(
        "a missing extra is a traceback",
        "ul_tokenizer/cli/reporting.py",
        'if "pip install" not in str(error):',
        "if True:",
        "tests/test_cli.py",
    ),
    Mutation(
        "clip_frames is ignored for data sets of the hub",
        "ul_tokenizer/sources/open.py",
        "    if clip_frames is not None:\n",
        "    if clip_frames is not None and path.exists():\n",
        "tests/sources/test_open.py",
    ),
    Mutation(
        "a text is taken for class labels",
        "ul_tokenizer/pipelines/conditions.py",
        "texts = [class_labels] if isinstance(class_labels, str) else class_labels",
        "texts = class_labels",
        "tests/pipelines/test_generation.py",
    ),
    Mutation(
        "the pipeline takes latents as they are, whatever the config says",
        "ul_tokenizer/models/latent_normalization.py",
        "return latents / scale + shift",
        "return latents",
        "tests/pipelines/test_inside_diffusers.py",
    ),
    Mutation(
        "saving a training changes its model's config",
        "ul_tokenizer/training/stage1.py",
        "        self.autoencoder.save_pretrained(folder)\n",
        "        self.autoencoder.register_to_config(scaling_factor=0.5)\n"
        "        self.autoencoder.save_pretrained(folder)\n",
        "tests/training/test_stage1.py",
    ),
    Mutation(
        "a missing variant is no OSError",
        "ul_tokenizer/models/checkpoint.py",
        "class NoWeightsError(ValueError, OSError):",
        "class NoWeightsError(ValueError):",
        "tests/models/test_loading.py",
    ),
    Mutation(
        "decoding makes a scheduler inside of the traced call",
        AUTOENCODER,
        "return levels_at(evenly_spaced(",
        "return (self.make_decoder_scheduler() and None) or levels_at(evenly_spaced(",
        "tests/models/test_tracing.py",
    ),
    # ------------------------------------------------------------ evaluation
    Mutation(
        "KID counts the distance of an image to itself",
        "ul_tokenizer/evaluation/measures/kernel_distance.py",
        "(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))",
        "kernel.mean()",
        "tests/evaluation/measures/test_kernel_distance.py",
    ),
    Mutation(
        "the Fréchet distance forgets the factor 2 of the mixed term",
        "ul_tokenizer/evaluation/measures/frechet.py",
        "traces - 2 * eigenvalues",
        "traces - eigenvalues",
        "tests/evaluation/measures/test_frechet.py",
    ),
    Mutation(
        "intervals are over crops and not over images",
        "ul_tokenizer/evaluation/measures/bootstrap.py",
        "_, group_of_row = groups.cpu().unique(return_inverse=True)",
        "group_of_row = torch.arange(len(groups))",
        "tests/evaluation/measures/test_bootstrap.py",
    ),
    Mutation(
        "reconstructions that are not finite are averaged",
        "ul_tokenizer/evaluation/reconstruction.py",
        "values[~again.is_finite] = torch.nan",
        "values[~again.is_finite] = 0.0",
        "tests/evaluation/test_reconstruction.py",
    ),
    Mutation(
        "parts keep the order in which shapes were measured",
        "ul_tokenizer/evaluation/parts.py",
        'order = np.argsort(columns[NUMBER], kind="stable")',
        "order = np.arange(len(columns[NUMBER]))",
        "tests/evaluation/test_parts.py",
    ),
    Mutation(
        "random crops of one image are all the same",
        "ul_tokenizer/evaluation/samples.py",
        "keys = int(self.groups[number]), int(self._draws[number])",
        "keys = int(self.groups[number]), 0",
        "tests/evaluation/test_samples.py",
    ),
    Mutation(
        "given frames count as predicted",
        "ul_tokenizer/evaluation/reconstruction.py",
        "compared = pixels[:, :, self.first_frame :], again.pixels[:, :, self.first_frame :]",
        "compared = pixels, again.pixels",
        "tests/evaluation/test_prediction.py",
    ),
    Mutation(
        "every network's gradient is clipped by the norm of all",
        "ul_tokenizer/training/engine/clipping.py",
        'limited = norm if clip == "parts" else total',
        "limited = total",
        "tests/training/engine/test_clipping.py",
    ),
    Mutation(
        "a skipped step moves the averages",
        "ul_tokenizer/training/engine/averages.py",
        "profile.newest(n) * made",
        "profile.newest(n)",
        "tests/training/engine/test_averages.py",
    ),
    Mutation(
        "processes resume from different checkpoints",
        "ul_tokenizer/training/engine/start.py",
        "if seen != views[0]:",
        "if seen is Ellipsis:",
        "tests/training/engine/test_distribution.py",
    ),
    Mutation(
        "a resumed optimiser's moments keep the layout of the checkpoint",
        "ul_tokenizer/training/engine/sharding.py",
        "laid_out = torch.empty_like(part_of(parameter), dtype=value.dtype)",
        "laid_out = torch.empty(part_of(parameter).shape, dtype=value.dtype)",
        "tests/training/engine/test_moments.py",
    ),
    Mutation(
        "a global batch that the processes don't divide is rounded down",
        "ul_tokenizer/training/engine/accelerator.py",
        "if args.global_batch_size % at_once:",
        "if args.global_batch_size < at_once:",
        "tests/training/engine/test_distribution.py",
    ),
    Mutation(
        "a step takes samples of several buckets",
        "ul_tokenizer/training/draws/buckets.py",
        "np.concatenate([groups[k] for k in random.permutation(len(groups))])",
        "random.permutation(np.concatenate(groups))",
        "tests/training/draws/test_buckets.py",
    ),
]


def pytest_is_green(tree: Path, tests: Sequence[str]) -> bool:
    """Runs some test files of a tree; raises RuntimeError if they could not run at all."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.returncode == 0


def is_caught(tree: Path, mutation: Mutation) -> bool:
    """Applies a mutation, runs its tests, and takes it back."""
    path = tree / mutation.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return not pytest_is_green(tree, [mutation.tests])
    finally:
        path.write_text(source, encoding="utf-8")


def copy_of_the_tree(folder: Path) -> Path:
    """Copies what tests need: the package with its weights, scripts, documents and tests."""
    tree = folder / "tree"
    leave = shutil.ignore_patterns("__pycache__", ".venv*", ".git", "runs", "demo", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=leave)
    return tree


def misplaced(mutations: Sequence[Mutation]) -> list[str]:
    """Mutations whose line does not stand exactly once in its file, as happens when the code was rewritten."""
    texts = {m.file: (ROOT / m.file).read_text(encoding="utf-8") for m in mutations}
    return [
        f"{m.name}: {m.file} holds {m.old!r} {texts[m.file].count(m.old)} times"
        for m in mutations
        if texts[m.file].count(m.old) != 1
    ]


def outcomes(mutations: Sequence[Mutation]) -> Iterator[tuple[Mutation, bool]]:
    """Whether each mutation was caught, in the order in which they are finished; each process has its own copy."""
    trees: SimpleQueue[Path] = SimpleQueue()

    def judge(mutation: Mutation) -> tuple[Mutation, bool]:
        tree = trees.get()
        try:
            return mutation, is_caught(tree, mutation)
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(PROCESSES) as pool:
        for number in range(PROCESSES):
            trees.put(copy_of_the_tree(Path(folder, str(number))))
        yield from (done.result() for done in as_completed([pool.submit(judge, m) for m in mutations]))


def main(words: list[str]) -> int:
    """Prints a line per mutation; returns the exit status."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    if problems := misplaced(chosen):
        print("\n".join(problems))
        return 2
    if not pytest_is_green(ROOT, sorted({m.tests for m in chosen})):
        print("the tests fail before anything is broken")
        return 2
    start, survivors = time.monotonic(), 0
    for mutation, caught in outcomes(chosen):
        survivors += not caught
        print(f"{'caught  ' if caught else 'SURVIVED'}  {mutation.name}", flush=True)
    seconds = time.monotonic() - start
    print(f"{len(chosen) - survivors} of {len(chosen)} mutations caught in {seconds:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
