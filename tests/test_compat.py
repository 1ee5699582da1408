"""Private names of other libraries: each still works as `_compat.py` uses it, and nothing else of ours uses any.

A red test here after an upgrade says which library took which name away, and what to do.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.hub.loopback_hub import LoopbackHub
from ul_tokenizer import _compat
from ul_tokenizer.models.presets import build_prior

PACKAGE = Path(_compat.__file__).parent


def taken_away(library: str, name: str, remedy: str) -> str:
    """The sentence that a red test shows."""
    version = import_module(library).__version__
    return (
        f"{library} {version} no longer has {name} as ul_tokenizer/_compat.py uses it: {remedy}, or lower the upper "
        f"bound of {library} in pyproject.toml."
    )


# ---------------------------------------------------------------- torch


def test_onednn_has_a_linear_layer_that_equals_torchs() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    message = taken_away("torch", "mkldnn._linear_pointwise", "find oneDNN's linear operator under its new name")
    assert _compat.onednn_linear_operator() is not None, message
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
    for b in (bias, None):
        torch.testing.assert_close(
            _compat.onednn_linear(x, weight, b), nn.functional.linear(x, weight, b), msg=lambda _: message
        )


def test_attention_on_cpus_has_the_operator_that_flops_are_counted_of() -> None:
    message = taken_away("torch", "_scaled_dot_product_flash_attention_for_cpu", "count FLOPs of the new operator")
    operators = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operators.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    q = torch.randn(1, 2, 4, 8)
    with Recorded():
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert _compat.cpu_attention_operator() in operators, message


def test_attention_of_gpus_can_be_called_on_the_meta_device_and_keeps_no_weights_of_attention() -> None:
    message = taken_away("torch", "_scaled_dot_product_efficient_attention", "call another kernel for GPUs")
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    q, k = (torch.empty(2, 3, length, 8, device="meta", requires_grad=True) for length in (64, 32))
    masks = (None, torch.empty(2, 1, 1, 32, dtype=torch.bool, device="meta"))
    for mask in masks:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attended = _compat.fused_attention(q, k, k, mask)
        assert attended.shape == q.shape, message
        torch.autograd.backward(attended.sum())
        assert k.grad is not None and k.grad.shape == k.shape, message
    assert sum(size for size in kept if size == 2 * 3 * 64 * 32) <= 2 * 3 * 64 * 32, message  # the mask alone


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_torch_knows_which_precisions_this_cpu_has(precision: str) -> None:
    message = taken_away("torch", f"mkldnn._is_mkldnn_{precision}_supported", "ask for the CPU's abilities otherwise")
    assert isinstance(_compat.is_native_on_cpu(precision), bool), message
    assert _compat.is_native_on_cpu("fp7") is None


def test_a_convolution_takes_other_weights_and_keeps_its_padding() -> None:
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="reflect")
    x, double = torch.randn(1, 2, 6, 6), 2 * conv.weight
    assert conv.bias is not None
    expected = conv(x) * 2 - conv.bias[:, None, None]
    message = taken_away("torch", "Conv2d._conv_forward", "call F.conv2d with the module's settings")
    torch.testing.assert_close(_compat.conv2d_with(conv, x, double, conv.bias), expected, msg=lambda _: message)


def test_tensors_are_copied_and_measured_all_at_once() -> None:
    targets, sources = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), 2 * torch.ones(3)]
    pointers = [t.data_ptr() for t in targets]
    _compat.copy_all(targets, sources)
    message = taken_away("torch", "_foreach_copy_", "copy the tensors one by one")
    assert all(map(torch.equal, targets, sources)), message
    assert [t.data_ptr() for t in targets] == pointers, message
    measured = torch.stack(_compat.norms(sources))
    message = taken_away("torch", "_foreach_norm", "take the norms one by one")
    torch.testing.assert_close(measured, torch.tensor([2**0.5, 12**0.5]), msg=lambda _: message)


def test_tensors_move_towards_others_all_at_once() -> None:
    targets, sources = [torch.zeros(2), torch.ones(3)], [torch.ones(2), 2 * torch.ones(3)]
    pointers = [t.data_ptr() for t in targets]
    message = taken_away("torch", "_foreach_sub, _foreach_mul_ or _foreach_add_", "move the tensors one by one")
    _compat.move_towards(targets, sources, torch.tensor(0.0))
    assert targets[0].eq(0).all() and targets[1].eq(1).all(), message
    _compat.move_towards(targets, sources, torch.tensor(0.25))
    assert targets[0].eq(0.25).all() and targets[1].eq(1.25).all(), message
    assert [t.data_ptr() for t in targets] == pointers, message


@pytest.mark.parametrize(("flag", "moves"), [(0.0, True), (1.0, False)])
def test_a_fused_optimiser_skips_a_step_by_itself(flag: float, moves: bool) -> None:
    message = taken_away("torch", "AdamW.found_inf", "see what GradScaler.step sets for fused optimisers")
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for skipped in (torch.tensor(0.0), torch.tensor(flag)):
        before = {name: value.clone() for name, value in (optimizer.state.get(weight) or {}).items()}
        start = weight.detach().clone()
        weight.grad = torch.ones(3) * (torch.nan if skipped else 1.0)
        assert _compat.skip_steps_where(optimizer, skipped), message
        optimizer.step()
    after = optimizer.state[weight]
    assert (not torch.equal(weight, start)) == moves, message
    assert all((not torch.equal(before[name], after[name])) == moves for name in before) and before, message


def test_an_optimiser_that_is_not_fused_skips_no_step_by_itself() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1.0)
    assert not _compat.skip_steps_where(optimizer, torch.tensor(1.0))


def test_rows_of_noise_have_the_shapes_that_torchs_operator_takes() -> None:
    device = torch.device("meta")  # no CPU has the operator yet; tests/training/draws/test_noise.py runs it on GPUs
    if not _compat.draws_normal_by_rows(device):
        pytest.skip("torch before 2.13 draws the noise of each row by itself")
    _compat.fill_normal_by_rows(torch.empty(4, 3, 5, 7, device=device), [2**63 - 1, 5, 0, 5], 1)
    message = taken_away("torch", "aten._philox_normal_", "see torch.func._random for noise with keys")
    with pytest.raises(RuntimeError, match="key"):
        torch.ops.aten._philox_normal_(torch.empty(4, 3, device=device), torch.empty(3, 1, 2, device=device), 0.0, 1.0)
    assert hasattr(torch.ops.aten, "_philox_normal_"), message


def test_the_rate_that_a_scheduler_reports_can_be_set() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    _compat.set_last_rates(scheduler, [0.5])
    message = taken_away("torch", "LRScheduler._last_lr", "see how get_last_lr() remembers the rate")
    assert scheduler.get_last_lr() == [0.5], message


# ---------------------------------------------------------------- diffusers


def test_a_class_tells_its_config_keys() -> None:
    message = taken_away("diffusers", "ConfigMixin._get_init_keys", "read them from the constructor's signature")
    keys = _compat.init_keys(DDPMScheduler)
    assert {"beta_start", "num_train_timesteps"} <= keys, message
    assert "self" not in keys, message


def test_the_config_of_an_average_has_no_keys_but_the_known_ones(tmp_path: Path) -> None:
    prior = build_prior("ul-tiny-f8")
    average = EMAModel(prior.parameters(), model_cls=type(prior), model_config=prior.config)
    average.save_pretrained(tmp_path)
    written = type(prior)._dict_from_json_file(tmp_path / "config.json")
    unknown = {key for key in written if not key.startswith("_")} - _compat.init_keys(type(prior))
    message = taken_away("diffusers", "EMAModel's config keys", "add the new keys to FOREIGN_CONFIG_KEYS")
    assert unknown <= _compat.FOREIGN_CONFIG_KEYS, message
    assert "optimization_step" in unknown, message


def test_diffusers_has_its_table_of_loadable_classes_and_the_classes_that_load() -> None:
    remedy = "see how DiffusionPipeline.from_pretrained resolves the libraries of its parts"
    table = _compat.loadable_classes(import_module(_compat.PIPELINE_LOADING))
    assert isinstance(table, dict), taken_away("diffusers", "LOADABLE_CLASSES", remedy)
    assert table["diffusers"]["ModelMixin"] == ["save_pretrained", "from_pretrained"]
    for module, name in ((_compat.PIPELINE_UTILS, "DiffusionPipeline"), (_compat.AUTO_MODEL, "AutoModel")):
        message = taken_away("diffusers", f"{module}.{name}", "register with the module that defines the class now")
        assert getattr(import_module(module), name).__module__ == module, message


def test_a_pipeline_tells_its_device_and_its_progress_bar() -> None:
    unet = UNet2DModel(8, block_out_channels=(4,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                       norm_num_groups=2, layers_per_block=1)  # fmt: skip
    pipeline = DDPMPipeline(unet, DDPMScheduler())
    assert _compat.progress_bar_config(pipeline) == {}
    pipeline.set_progress_bar_config(desc="mine")
    message = taken_away("diffusers", "DiffusionPipeline._progress_bar_config", "see what set_progress_bar_config sets")
    assert _compat.progress_bar_config(pipeline) == {"desc": "mine"}, message
    message = taken_away("diffusers", "DiffusionPipeline._execution_device", "take the device of the pipeline's hooks")
    assert _compat.execution_device(pipeline) == torch.device("cpu"), message


def test_diffusers_sets_the_attributes_of_an_attention_processor_that_ours_declare() -> None:
    prior = build_prior("ul-tiny-f8")
    prior.set_attention_backend("native")
    backends = {str(processor._attention_backend.value) for processor in prior.attn_processors.values()}
    message = taken_away("diffusers", "a processor's _attention_backend", "rename it in models/attention.py")
    assert backends == {"native"}, message


# ---------------------------------------------------------------- huggingface_hub


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_the_cache_of_the_hub_has_the_layout_that_downloads_rely_on(hub: LoopbackHub, tmp_path: Path) -> None:
    api = huggingface_hub.HfApi(token=hub.token)
    api.create_repo("owner/model")
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="a.txt", repo_id="owner/model")
    file = Path(huggingface_hub.hf_hub_download("owner/model", "a.txt", cache_dir=tmp_path, token=hub.token))
    commit = api.model_info("owner/model").sha
    message = taken_away("huggingface_hub", "the layout of its cache", "follow the new layout in the cached_ functions")
    repository = _compat.cached_repository(tmp_path, "owner/model", "model")
    assert commit is not None
    assert file == _compat.cached_snapshot(repository, commit) / "a.txt", message
    assert _compat.cached_ref(repository, "main").read_text() == commit, message
    assert _compat.cached_digest(file) in {hashlib.sha256(b"weights").hexdigest(), git_blob_id(b"weights")}, message
    assert _compat.cached_digest(tmp_path / "none") == ""


# ---------------------------------------------------------------- nowhere else

UNDOCUMENTED = {"LOADABLE_CLASSES", "shadow_params", "ops"}  # `torch.ops` holds operators, most of them private
PUBLIC_IN_SPITE_OF_IT = {"_asdict", "_replace", "_fields", "_make"}  # of named tuples, documented by Python
# Written into config.json and model_index.json: names of a file format.
KEYS_OF_FILES = {"_class_name", "_name_or_path", "_diffusers_version"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier() and name != "_"


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Names that a file of ours defines: functions, classes, attributes and variables."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            is_on_self = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
            if isinstance(node, ast.Name) or is_on_self:
                yield node.id if isinstance(node, ast.Name) else node.attr


def host_names(tree: ast.Module) -> set[str]:
    """Names in a file that are modules or objects of other libraries."""
    imports = (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in imports
        for alias in node.names
        if not (isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("ul_tokenizer")))
    }


def private_uses(tree: ast.Module, ours: set[str]) -> Iterator[tuple[int, str]]:
    """Private names of other libraries: as attributes, in imports, and in strings for `getattr` and `hasattr`."""
    hosts = host_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = ast.unparse(node).split(".")[0]
            is_foreign = node.attr not in ours or root in hosts
            if (is_private(node.attr) and is_foreign and node.attr not in PUBLIC_IN_SPITE_OF_IT) or (
                node.attr in UNDOCUMENTED
            ):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ul_tokenizer"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if is_private(part) or part in UNDOCUMENTED)
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = ast.unparse(node.args[1]).strip("f'\"")
            known = ours | KEYS_OF_FILES
            if name.startswith("_") and not name.startswith("__") and name not in known:
                yield node.lineno, name


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_no_other_file_uses_private_names_of_other_libraries() -> None:
    files = {path: parsed(path) for path in sorted(PACKAGE.rglob("*.py"))}
    ours = {name for tree in files.values() for name in defined_names(tree)}
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path, tree in files.items()
        if path.name != "_compat.py"
        for line, name in private_uses(tree, ours)
    ]
    assert found == [], "Private names of other libraries belong into ul_tokenizer/_compat.py, with a test above."


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._foreach_norm(x)",
        "import torch\ntorch.ops.mkldnn._linear_pointwise(x)",
        "import torch._inductor",
        "from torch._inductor import config",
        "from diffusers.utils import _LazyModule",
        "from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES",
        "pipeline._execution_device",
        "class A(B):\n    def f(self):\n        return self._conv_forward(x)",
        "scheduler._last_lr = [1]",
        "getattr(torch.ops.mkldnn, '_linear_pointwise')",
        "getattr(room, f'_is_mkldnn_{precision}_supported')",
        "average.shadow_params",
    ],
)
def test_a_private_name_is_seen_however_it_is_used(source: str) -> None:
    tree = ast.parse(source)
    assert list(private_uses(tree, set(defined_names(tree))))


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    _x = 1\n    def f(self):\n        return self._x",
        "class A:\n    def __init__(self):\n        self._x = 1\na._x",
        "row._asdict()",
        "from ul_tokenizer.models import _private",
        "getattr(model, '_name_or_path')",
    ],
)
def test_our_own_private_names_are_none_of_theirs(source: str) -> None:
    tree = ast.parse(source)
    assert not list(private_uses(tree, set(defined_names(tree))))


def test_the_file_itself_imports_nothing_heavy() -> None:
    imports = [node for node in parsed(Path(_compat.__file__)).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [getattr(node, "module", None) or ast.unparse(node).removeprefix("import ") for node in imports]
    roots = {module.split(".")[0] for module in modules}
    assert roots == {"__future__", "re", "collections", "pathlib", "types", "typing"}
