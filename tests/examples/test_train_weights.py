"""The queue of trainings: what it runs, skips and leaves out, and that it survives a kill at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ul_tokenizer.training.recipes import find_config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_weights.py"
# A stage like a training: it counts to 20, notes each step, goes on where it was and writes its result in the end.
COUNTER = """
import sys, time, signal, pathlib
name, delay = sys.argv[1], float(sys.argv[2])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
steps = pathlib.Path(name + ".steps")
done = len(steps.read_text().split()) if steps.exists() else 0
for step in range(done, 20):
    time.sleep(delay)
    with steps.open("a") as file:
        print(step, file=file)
    print(f"step {step + 1}/20: loss 0.5", flush=True)
    if stopped:
        sys.exit(0)
pathlib.Path(name + ".done").write_text("whole")
"""


class Folder:
    """A list of stages with its results, and the queue as processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "counter.py").write_text(COUNTER)

    def write(self, *stages: dict[str, Any], **content: Any) -> None:
        (self.root / "list.yaml").write_text(yaml.safe_dump({"stages": list(stages), **content}))

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), "--list", "list.yaml", "--folder", "queue", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *words: str, status: int = 0) -> str:
        process = self.start(*words)
        shown, _ = process.communicate(timeout=120)
        assert process.returncode == status, shown
        return shown

    def record(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.root / "queue" / f"{name}.json").read_text())
        return record

    def steps(self, name: str) -> list[int]:
        path = self.root / f"{name}.steps"
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    def wait_for(self, is_there: Callable[[], bool]) -> None:
        for _ in range(600):
            if is_there():
                return
            time.sleep(0.05)
        pytest.fail("it did not come")


def counting(name: str, delay: float = 0.0, **changes: Any) -> dict[str, Any]:
    return {"name": name, "command": f"python counter.py {name} {delay}", "done_when": f"{name}.done", **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# ---------------------------------------------------------------- order


def test_stages_run_once_and_in_their_order_and_a_second_queue_skips_them(folder: Folder) -> None:
    folder.write(counting("first"), counting("second", needs=["first", "./first.done"]))
    shown = folder.run()
    assert shown.index("first: finished") < shown.index("second: attempt 1")
    assert folder.steps("first") == folder.steps("second") == list(range(20))
    assert folder.run() == "first: finished before\nsecond: finished before\n"
    assert folder.record("second")["attempts"] == 1 and folder.record("second")["seconds"] > 0
    assert "step 20/20" in (folder.root / "queue" / "second.log").read_text()


def test_a_stage_whose_results_came_from_elsewhere_is_finished_and_one_whose_results_are_gone_is_not(
    folder: Folder,
) -> None:
    folder.write(counting("one"))
    (folder.root / "one.done").write_text("from another machine")
    assert folder.run() == "one: finished before\n" and folder.steps("one") == []
    (folder.root / "one.done").unlink()
    folder.run()
    (folder.root / "one.done").unlink()
    assert folder.run("--status").split()[:2] == ["one", "lost"]
    assert "one: attempt 2" in folder.run()


def test_a_failed_stage_stops_those_that_need_it_and_no_others(folder: Folder) -> None:
    fails = {"name": "fails", "command": "python -c 'print(1/0)'", "done_when": "never"}
    lazy = {"name": "lazy", "command": "python -c pass", "done_when": ["counter.py", "never"]}
    nowhere = {"name": "nowhere", "command": "/no/such/program", "done_when": "never"}
    needy, hungry = counting("needy", needs=["fails"]), counting("hungry", needs=["data/train"])
    folder.write(fails, lazy, nowhere, needy, hungry, counting("free"))
    shown = folder.run(status=1)
    assert "fails: failed with status 1 (ZeroDivisionError: division by zero)" in shown
    assert "lazy: ended without never" in shown and "nowhere: failed with status 127" in shown
    assert "needy: left out, because it needs the stage fails" in shown
    assert "hungry: left out, because it needs data/train, which doesn't exist" in shown
    assert "free: finished" in shown and shown.endswith("not finished: fails, lazy, nowhere, needy, hungry\n")
    states = [line.split()[1] for line in folder.run("--status").splitlines()]
    assert states == ["failed", "failed", "failed", "waiting", "waiting", "finished"]


def test_a_part_of_the_list_can_be_run(folder: Folder) -> None:
    folder.write(*(counting(name) for name in "abcd"))
    folder.run("--until", "b")
    assert [bool(folder.steps(name)) for name in "abcd"] == [True, True, False, False]
    folder.run("--only", "d")
    assert [bool(folder.steps(name)) for name in "abcd"] == [True, True, False, True]
    assert folder.run("--only", "x", status=1) == "error: a stage must be one of a, b, c, d, got 'x'.\n"


def test_a_changed_command_or_config_runs_again(folder: Folder) -> None:
    (folder.root / "config.yaml").write_text("max_train_steps: 5\n")
    command = "python -c \"import pathlib, sys; pathlib.Path('words').write_text(' '.join(sys.argv[1:]))\""
    stage = {"name": "one", "command": command, "config": "config.yaml", "done_when": "words"}
    folder.write(stage)
    folder.run()
    assert (folder.root / "words").read_text() == "--config config.yaml"
    (folder.root / "config.yaml").write_text("max_train_steps: 6\n")
    assert folder.run("--status").split()[:2] == ["one", "changed"]
    assert "one: attempt 2" in folder.run() and folder.run() == "one: finished before\n"


def test_variables_come_from_the_list_and_the_environment_and_all_cores_are_used(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; open('words', 'w').write(' '.join([*sys.argv[1:], os.environ['OMP_NUM_THREADS']]))"
    folder.write(
        {"name": "one", "command": f'python -c "{code}" $ONE ${{TWO}}/x', "done_when": "$ONE"},
        variables={"ONE": "words", "TWO": "list"},
    )
    monkeypatch.setenv("TWO", "environment")
    folder.run("--threads", "3")
    assert (folder.root / "words").read_text() == "words environment/x 3"


# ---------------------------------------------------------------- kills


def test_a_stage_whose_queue_was_killed_is_waited_for_and_not_run_twice_at_once(folder: Folder) -> None:
    folder.write(counting("long", 0.15), counting("next", needs=["long"]))
    queue = folder.start()
    folder.wait_for(lambda: len(folder.steps("long")) >= 3)
    queue.kill()
    queue.wait()
    assert folder.run("--status").split()[:2] == ["long", "running"]
    shown = folder.run()
    assert shown.startswith("another queue, or a stage of one that was killed, still runs; waiting for its end\n")
    assert folder.steps("long") == folder.steps("next") == list(range(20))
    assert folder.record("long")["attempts"] == 2 and "next: finished" in shown


def test_a_killed_stage_goes_on_from_its_checkpoint(folder: Folder) -> None:
    folder.write(counting("long", 0.1))
    queue = folder.start()
    folder.wait_for(lambda: len(folder.steps("long")) >= 3)
    queue.kill()
    os.kill(folder.record("long")["pid"], signal.SIGKILL)
    queue.wait()
    line = ""

    def is_interrupted() -> bool:
        nonlocal line
        line = folder.run("--status")
        return "interrupted" in line

    folder.wait_for(is_interrupted)
    assert "/20: loss 0.5" in line
    before = len(folder.steps("long"))
    folder.run()
    assert 3 <= before < 20 and folder.steps("long") == list(range(20))  # no step was made twice
    assert folder.record("long")["seconds"] > 1.9  # both attempts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_stage_with_a_checkpoint_and_the_queue(folder: Folder, number: signal.Signals) -> None:
    folder.write(counting("long", 0.1), counting("next"))
    queue = folder.start()
    folder.wait_for(lambda: len(folder.steps("long")) >= 2)
    queue.send_signal(number)
    shown, _ = queue.communicate(timeout=30)
    assert queue.returncode == 128 + number and f"long: stopped by {number.name}" in shown
    assert len(folder.steps("long")) < 20 and folder.steps("next") == []
    assert folder.record("long")["state"] == "stopped"
    folder.run()
    assert folder.steps("long") == folder.steps("next") == list(range(20))


def test_a_damaged_record_is_a_stage_that_did_not_run(folder: Folder) -> None:
    folder.write(counting("one"))
    (folder.root / "queue").mkdir()
    (folder.root / "queue" / "one.json").write_text('{"state": "fini')
    folder.run()
    assert folder.record("one")["state"] == "finished"


@pytest.mark.slow
def test_a_training_that_was_killed_ends_as_one_that_was_not(folder: Folder, tmp_path: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file

    (tmp_path / "images").mkdir()
    for n in range(6):
        Image.effect_noise((24, 24), 20 + 30 * n).convert("RGB").save(tmp_path / "images" / f"{n}.png")
    config = {
        "preset": "ul-tiny-f8",
        "train_data_dir": "images",
        "resolution": 16,
        "train_batch_size": 2,
        "max_train_steps": 40,
        "checkpointing_steps": 5,
        "logging_steps": 5,
        "validation_steps": 1000,
        "num_validation_images": 2,
        "resume_from_checkpoint": "latest",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def stage(name: str) -> dict[str, Any]:
        command = f"ul-tokenizer train autoencoder --output_dir {name}"
        return {"name": name, "command": command, "config": "config.yaml", "done_when": f"{name}/config.json"}

    folder.write(stage("killed"), stage("whole"))
    queue = folder.start("--threads", "1")
    folder.wait_for(lambda: (tmp_path / "killed" / "checkpoint-10").is_dir())
    queue.kill()
    os.kill(folder.record("killed")["pid"], signal.SIGKILL)
    queue.wait()
    assert not (tmp_path / "killed" / "config.json").exists()
    folder.run("--threads", "1")
    assert "Resumed" in (tmp_path / "queue" / "killed.log").read_text()
    name = "diffusion_pytorch_model.safetensors"
    killed, whole = (load_file(tmp_path / run / name) for run in ("killed", "whole"))
    assert all((killed[key] == whole[key]).all() for key in whole)


# ---------------------------------------------------------------- the list


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "list.yaml must have a list of stages."),
        ([{"name": "a"}], "stage 1 of list.yaml must have a name, a command and done_when"),
        ([counting("a", wants="b")], "stage 1 of list.yaml must have a name, a command and done_when"),
        ([counting("a"), counting("a")], "stage 2 of list.yaml must have a name of its own"),
        ([counting("a/b")], "stage 1 of list.yaml must have a name of its own"),
        ([counting("a", needs="b"), counting("b")], "must need earlier stages or paths with a slash, got 'b'."),
        ([counting("a", command="$NOPE x")], "stage 1 of list.yaml must use known variables only, got '$NOPE'."),
        ([counting("a", config="nope")], "--config must be a YAML file or a recipe"),
        ([counting("a", done_when=[])], "must have a command and a path in done_when"),
    ],
)
def test_an_illegal_list_is_one_sentence(folder: Folder, stages: list[dict[str, Any]], words: str) -> None:
    folder.write(*stages)
    shown = folder.run(status=1)
    assert shown.startswith("error: ") and words in shown and shown.count("\n") == 1


def test_the_list_of_the_bundled_weights_is_legal_and_its_trainings_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # configs are named from there
    folder = Folder(tmp_path)
    configs = Path("examples", "configs", "weights")
    shutil.copytree(configs, tmp_path / configs)
    content = yaml.safe_load((ROOT / "examples" / "weights.yaml").read_text())
    folder.write(*content["stages"], variables=content["variables"])
    names = [line.split()[0] for line in folder.run("--status").splitlines()]
    assert {"ul-photo-f8", "ul-fashion-base", "ul-video", "ul-emoji", "ul-emoji-base"} <= set(names)
    outputs = {}
    for stage in content["stages"]:
        if "config" not in stage:
            continue
        config = yaml.safe_load(find_config(stage["config"]).read_text(encoding="utf-8"))
        assert config["resume_from_checkpoint"] == "latest" and config["checkpointing_steps"] <= 2000
        assert Path(stage["done_when"]).parent == Path(config["output_dir"])
        outputs[config["output_dir"]] = stage["name"]
        for key in ("pretrained_model_name_or_path", "pretrained_autoencoder"):  # what a run starts from is needed
            if str(config.get(key)).startswith("runs/"):
                run = str(config[key]).removesuffix("/prior")
                assert outputs.get(run, Path(run).name) in stage["needs"]
