"""`benchmarks/startup.py`, and what keeps `ul-tokenizer info` within its bar of 1.5 × the time of its imports."""

from __future__ import annotations

import subprocess
import sys

import startup

SLEEP = (sys.executable, "-c", "import time; time.sleep(0.2)")
NOTHING = (sys.executable, "-c", "")


def test_ratios_are_medians_within_turns_so_that_a_slow_moment_does_not_count() -> None:
    one, slow = startup.Seconds(2.0, 1.0), startup.Seconds(1.0, 1.0)
    pairs = [(one, slow), (one, slow), (startup.Seconds(40.0, 1.0), startup.Seconds(1.0, 1.0))]
    assert startup.ratios(pairs) == (2.0, 1.0)


def test_sleeping_takes_wall_time_and_hardly_any_cpu_time() -> None:
    ((sleeping, nothing),) = startup.alternate(SLEEP, NOTHING, 1)
    assert sleeping.wall > 0.2 > sleeping.cpu - nothing.cpu


HEAVY = (
    *("av", "datasets", "gradio", "matplotlib", "onnx", "pandas", "pyarrow", "ray", "scipy.stats", "tensorboard"),
    *(
        "diffusers.models.autoencoders",
        "diffusers.pipelines",
        "transformers.modeling_utils",
        "transformers.models.auto",
    ),
)


def test_info_imports_nothing_heavy_beyond_torch_and_diffusers() -> None:
    """What its time depends on; only the benchmark measures the time, since timed tests fail on busy machines."""
    code = (
        "import sys; from typer.testing import CliRunner; from ul_tokenizer.cli import app; "
        "status = CliRunner().invoke(app, ['info']).exit_code; "
        "print(status, 'torch' in sys.modules, *set(sys.argv[1:]) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "True"]
