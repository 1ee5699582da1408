"""Private and undocumented names of torch, diffusers, accelerate and huggingface_hub: the only file that uses them.

An upgrade of these libraries may take such a name away without notice. `tests/test_compat.py` therefore has one test
per function below, which says what to do then, and `pyproject.toml` has upper bounds for these libraries. The same test
file fails where a private name is used elsewhere in the library.

Not listed here are class attributes that diffusers asks its subclasses to define, such as `_no_split_modules`,
`_callback_tensor_inputs` or a processor's `_attention_backend`. They are part of the contract of subclassing and stand
in the class they describe.

Heavy libraries are imported inside the functions, because `import ul_tokenizer` imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# ---------------------------------------------------------------- torch: operators


def onednn_linear_operator() -> Any:
    """oneDNN's linear layer for CPUs, `(x, weight, bias, attr, scalars, algorithm)`; None in builds without it."""
    import torch

    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN, which has no gradient; the operator must exist.

    Args:
        x: (…, C), fp32, on a CPU.
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        (…, C').
    """
    return cast("Tensor", onednn_linear_operator()(x, weight, bias, "none", [], ""))


def cpu_attention_operator() -> Any:
    """The operator behind `scaled_dot_product_attention` on CPUs; None in builds without it."""
    import torch

    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """`scaled_dot_product_attention` by a kernel for GPUs, which keeps no attention weights for the backward pass.

    It can be called on the meta device, too, where torch itself would not choose it.

    Args:
        query: (B, heads, L, D).
        key: (B, heads, S, D).
        value: as `key`.
        mask: broadcasts to (B, heads, L, S); bool, True where to attend, or a float to add. None for no mask.

    Returns:
        (B, heads, L, D).
    """
    import torch

    if mask is not None:
        bias = mask if mask.is_floating_point() else torch.zeros_like(mask, dtype=query.dtype)
        mask = bias.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return cast("Tensor", attend(query, key, value, mask, query.requires_grad)[0])


def is_native_on_cpu(precision: str) -> bool | None:
    """Whether this CPU computes in "bf16" or "fp16" natively; None if torch doesn't know."""
    import torch

    is_supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", None)
    return None if is_supported is None else bool(is_supported())


def draws_normal_by_rows(device: torch.device) -> bool:
    """Whether `fill_normal_by_rows` works on a device: torch has its operator since 2.13, at first for CUDA only."""
    import torch

    key = {"cuda": "CUDA", "xpu": "XPU", "meta": "Meta"}.get(device.type)
    if key is None or not hasattr(torch.ops.aten, "_philox_normal_"):
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("aten::_philox_normal_", key))


def fill_normal_by_rows(out: Tensor, seeds: Sequence[int], part: int) -> None:
    """Fills a tensor with standard normal noise in one launch.

    Args:
        out: (B, …), floating-point, contiguous; row i becomes a function of seeds[i] and `part` alone.
        seeds: B seeds, at least 0 and below 2⁶³.
        part: which of the independent streams of a seed is meant.
    """
    import torch

    # A key is a seed and a place in its stream; no row is so long that it reaches the place of the next part.
    keys = torch.tensor([[seed, part << 40] for seed in seeds], dtype=torch.uint64)
    if out.device.type == "cuda":  # from memory that isn't pinned, the copy would wait for all work on the GPU
        keys = keys.pin_memory()
    keys = keys.to(out.device, non_blocking=True)
    torch.ops.aten._philox_normal_(out.flatten(1), keys[:, None], 0.0, 1.0)


# ---------------------------------------------------------------- torch: modules and optimisers


def conv2d_with(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with the settings of `conv`, padding mode included, and other weights.

    Args:
        conv: gives stride, padding, dilation and groups.
        x: (N, C, H, W).
        weight: as `conv.weight`, in the dtype of x.
        bias: as `conv.bias`, or None.
    """
    result: Tensor = conv._conv_forward(x, weight, bias)
    return result


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies each source into its target of the same shape, in place, with one call for all of them."""
    import torch

    torch._foreach_copy_(list(targets), list(sources))


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norm of each tensor, 0-dimensional, with one call for all of them; the tensors have any shapes."""
    import torch

    return list(torch._foreach_norm(list(tensors)))


def move_towards(targets: Sequence[Tensor], sources: Sequence[Tensor], fraction: Tensor) -> None:
    """Moves each target a fraction of the way to its source, in place, with three calls for all of them.

    Args:
        targets: floating-point tensors, all on one device.
        sources: tensors of the same shapes.
        fraction: 0-dimensional, on the device of the targets; at 0 the targets keep their bits.
    """
    import torch

    steps = torch._foreach_sub(list(sources), list(targets))
    torch._foreach_mul_(steps, fraction)
    torch._foreach_add_(list(targets), steps)


def skip_steps_where(optimizer: torch.optim.Optimizer, flag: Tensor) -> bool:
    """Makes an optimiser skip its next step, state included, where `flag` is 1, without a look at it on the host.

    Args:
        optimizer: any optimiser.
        flag: (1,) or (), fp32, 0 or 1, on the device of the weights.

    Returns:
        whether the optimiser can do this, as torch's fused ones can.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    cast("Any", optimizer).found_inf = flag
    return True


def set_last_rates(lr_scheduler: torch.optim.lr_scheduler.LRScheduler, rates: Iterable[float]) -> None:
    """Sets what `get_last_lr()` returns until the next step."""
    lr_scheduler._last_lr = list(rates)


# ---------------------------------------------------------------- diffusers: configs and averages

# Keys that diffusers itself writes into a model's config.json: the state of `EMAModel`, and how weights were quantised.
# Averages of the training have the former, too, so that `EMAModel.from_pretrained` reads them.
FOREIGN_CONFIG_KEYS = frozenset(
    {
        "decay",
        "min_decay",
        "optimization_step",
        "update_after_step",
        "use_ema_warmup",
        "inv_gamma",
        "power",
        "quantization_config",
    }
)


def init_keys(cls: type[Any]) -> set[str]:
    """The config keys of a diffusers class: the names of its constructor's arguments."""
    return set(cls._get_init_keys(cls)) - {"self"}


# ---------------------------------------------------------------- diffusers: pipelines and loading

PIPELINE_LOADING = "diffusers.pipelines.pipeline_loading_utils"
PIPELINE_UTILS = "diffusers.pipelines.pipeline_utils"
AUTO_MODEL = "diffusers.models.auto_model"


def loadable_classes(pipeline_loading: ModuleType) -> dict[str, dict[str, list[str]]] | None:
    """Library → class → its methods for saving and loading: what diffusers loads the parts of a pipeline from.

    Args:
        pipeline_loading: the module `PIPELINE_LOADING`.

    Returns:
        diffusers' own table, for changing it; None while the module is still being imported.
    """
    return getattr(pipeline_loading, "LOADABLE_CLASSES", None)


def execution_device(pipeline: Any) -> torch.device:
    """The device on which a pipeline computes, also if its parts are offloaded between their uses."""
    return cast("torch.device", pipeline._execution_device)


def progress_bar_config(pipeline: Any) -> dict[str, Any]:
    """What a pipeline's `set_progress_bar_config` last set; empty if it was never called."""
    return dict(getattr(pipeline, "_progress_bar_config", {}))


# ---------------------------------------------------------------- huggingface_hub: its cache on the disk


def cached_repository(root: Path, repo_id: str, repo_type: str) -> Path:
    """The folder of a repository ("model" or "dataset") in the hub's cache."""
    return root / f"{repo_type}s--{repo_id.replace('/', '--')}"


def cached_snapshot(repository: Path, commit: str) -> Path:
    """The folder with the files of a commit."""
    return repository / "snapshots" / commit


def cached_ref(repository: Path, revision: str) -> Path:
    """The file that holds the commit of a branch or tag."""
    return repository / "refs" / revision


def cached_digest(path: Path) -> str:
    """The hash of a snapshot's file: the name of the blob that it links to; "" if it is not a link to a blob.

    Returns:
        64 hex digits (sha256) for large files, 40 (git's blob id) for others.
    """
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else ""
