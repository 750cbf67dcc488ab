"""Whatever a user hands over wrongly ends with exit code 2 and one line that names the thing and the mend."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.commands import DATA, TINY, UNTAUGHT, Ended
from stillroom.distillation.methods import METHODS
from stillroom.models.store import load_model

Here = Callable[..., Ended]

QUIET = (*TINY, "--quiet")
FEW = ("--recipe.epochs", "1", "--recipe.batch_size", "4", "--no_baseline", "--quiet")
SMALL = (*FEW, "--teacher", "resnet8")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve pictures of three classes in a folder."""
    for number, name in enumerate(("cat", "dog", "owl")):
        for index in range(8):
            file = tmp_path / "pictures" / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), 80 * number + index, dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    return tmp_path / "pictures"


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """A whole MNIST-like set of 40 and 20 images."""
    folder = tmp_path / "idx"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 20)):
        pixels = generator.integers(256, size=(count, 8, 8), dtype=np.uint8)
        labels = bytes(index % 10 for index in range(count))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 8, 8) + pixels.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels)
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("distil", "unknown verb 'distil'; did you mean 'distill'?"),
        ("distill --method simkdd", "unknown method 'simkdd'; did you mean 'simkd'?"),
        ("bench --methods alone,kdd", "unknown method 'kdd'; did you mean 'kd'?"),
        ("methods semkd", "unknown method 'semkd'; did you mean 'semckd'?"),
        ("distill --student resnet8x5", "unknown model 'resnet8x5'; did you mean 'resnet8x4'?"),
        ("distill --teacher resnte20", "unknown model 'resnte20'; did you mean 'resnet20'?"),
        ("bench --student resnet88", "unknown model 'resnet88'; did you mean 'resnet8'?"),
        ("distill --recipe quik", "unknown recipe 'quik'; did you mean 'quick'?"),
        ("distill --data digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("distill --methid kd", "unknown option '--methid'; did you mean '--method'?"),
        ("distill --recipe.epoch 3", "unknown option '--recipe.epoch'; did you mean '--recipe.epochs'?"),
        ("distill --method.alpha 3", "unknown option '--method.alpha'; known: --method.name, --method.temperature"),
        ("bench --seed 3", "unknown option '--seed'; did you mean '--seeds'?"),
        ("distill --recipe.epochs two", "--recipe.epochs two: expected a whole number"),
        ("distill --device cudo", "--device cudo: expected one of auto, cpu, cuda, mps; did you mean 'cuda'?"),
        ("distill --label_map cat", "--label_map cat: expected pairs like '{A: B, C: D}'"),
        ("distill --weights half", "--weights half: expected one of simkd, crd or pairs like '{A: B, C: D}'"),
        ("distill digits", "unexpected argument 'digits'"),
        ("distill --out", "--out: expected one argument"),
        ("distill --recipe.epochs 0", "recipe.epochs is 0; it must be at least 1"),
        ("distill --data.fraction 2", "data.fraction is 2.0; it must be above 0 and at most 1"),
        ("bench --seeds 1,1", "a seed is named twice: 1, 1"),
        (
            "bench --method_options {kd:{temperatur:2}}",
            "unknown option of kd 'temperatur'; did you mean 'temperature'?",
        ),
        ("export", "the following arguments are required"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest_right_one(here: Here, command: str, said: str) -> None:
    ended = here(*words(command))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint


def words(command: str) -> list[str]:
    return [word.replace(":", ": ") if word.startswith("{") else word for word in command.split()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "is not YAML: expected the node content, but found '<stream end>' in line 1"),
        ("- 1\n- 2\n", "holds no options"),
        ("stuident: resnet8\n", "unknown option '--stuident'; did you mean '--student'?"),
        ("recipe:\n  epochs: many\n", "--recipe.epochs many: expected a whole number"),
        ("recipe:\n  epoch: 3\n", "unknown option '--recipe.epoch'; did you mean '--recipe.epochs'?"),
        ("student: {a: 1}\n", "--student {'a': 1}: expected a text"),
        ("method: simkdd\n", "unknown method 'simkdd'; did you mean 'simkd'?"),
    ],
)
def test_a_wrong_configuration_file_is_named(here: Here, tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    ended = here("distill", "--config", file)
    assert ended.code == 2
    assert said in ended.complaint


def test_a_missing_configuration_file_is_named(here: Here, tmp_path: Path) -> None:
    assert "none.yaml: No such file" in here("distill", "--config", tmp_path / "none.yaml").complaint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--teacher resnet20@none.safetensors", "none.safetensors does not exist"),
        ("--teacher runs/none", "runs/none/model.json does not exist"),
        ("--teacher wrn_16_1 --method simkd", "simkd needs a teacher whose classifier sits directly on its"),
        ("--method semckd --recipe.batch_size 3", "semckd needs batches of at least 4 samples per process, got 3"),
        ("--temperature 0 --method fitnet", "temperature must be a finite number above 0, not 0.0"),
        ("--recipe.batch_size 50", "40 training images do not fill a batch of 50; lower --recipe.batch_size"),
        ("--teacher_cache cache", "fresh augmentations never do; use --data.views k"),
        ("--teacher_cache cache --data.augment none --method at", "the cache holds logits and pooled features only"),
        ("--label_map {0:zero}", "'zero', is not among the teacher's 10 classes"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    here: Here, tmp_path: Path, options: str, said: str
) -> None:
    ended = here("distill", *UNTAUGHT, "--quiet", "--out", tmp_path / "run", *words(options))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["simkd", "semckd"])
def test_a_bench_refuses_a_cell_that_cannot_work_before_the_first_one_starts(
    here: Here, tmp_path: Path, name: str
) -> None:
    options = ("--teacher", "wrn_16_1", "--methods", f"alone,{name}", "--recipe.batch_size", "3", "--quiet")
    ended = here("bench", *DATA, *options, "--out", tmp_path / "bench")
    assert ended.code == 2
    assert f"{name} needs" in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_student_whose_classes_differ_is_told_the_first_difference(here: Here, images: Path, tmp_path: Path) -> None:
    trained = here("distill", *SMALL, "--data", f"folder:{images}", "--out", tmp_path / "animals")
    assert (trained.code, trained.err) == (0, "")
    (images / "dog").rename(images / "hound")
    again = (*FEW, "--data", f"folder:{images}", "--teacher", tmp_path / "animals", "--out", tmp_path / "hounds")
    refused = here("distill", *again)
    assert refused.code == 2
    assert "class 1 of the student, 'hound', is not among the teacher's 3 classes" in refused.complaint
    assert "--label_map" in refused.complaint
    assert not (tmp_path / "hounds").exists()
    mended = here("distill", *again, "--label_map", '{"hound": "dog"}')
    assert (mended.code, mended.err) == (0, "")
    assert load_model(tmp_path / "hounds").card.classes == ("cat", "hound", "owl")


def test_a_damaged_picture_is_named(here: Here, images: Path, tmp_path: Path) -> None:
    broken = images / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    ended = here("distill", *SMALL, "--data", f"folder:{images}", "--out", tmp_path / "run")
    assert ended.code == 2
    assert str(broken) in ended.complaint
    assert not (tmp_path / "run").exists()


def test_a_damaged_idx_file_is_named(here: Here, idx: Path, tmp_path: Path) -> None:
    broken = idx / "train-images-idx3-ubyte"
    broken.write_bytes(broken.read_bytes()[:-100])
    ended = here("distill", *SMALL, "--data", f"mnist:{idx}", "--out", tmp_path / "run")
    assert ended.code == 2
    assert str(broken) in ended.complaint


def test_labels_outside_the_class_count_are_named(here: Here, idx: Path, tmp_path: Path) -> None:
    labels = idx / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([10]))
    ended = here("distill", *SMALL, "--data", f"mnist:{idx}", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "10" in ended.complaint


def test_a_teacher_without_its_weights_is_refused(here: Here, finished: tuple[Path, Ended], tmp_path: Path) -> None:
    shutil.copytree(finished[0] / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    ended = here("distill", *UNTAUGHT, "--quiet", "--teacher", tmp_path / "teacher", "--out", tmp_path / "run")
    assert ended.code == 2
    assert f"{tmp_path / 'teacher' / 'model.safetensors'} does not exist" in ended.complaint


def test_a_folder_in_use_is_not_touched(here: Here, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    for verb in ("distill", "bench"):
        ended = here(verb, *DATA, "--out", tmp_path)
        assert ended.code == 2
        assert f"{tmp_path} is not empty; choose another folder" in ended.complaint
    refused = here("distill", *QUIET, "--out", tmp_path, "--overwrite")
    assert (refused.code, "is no run and is not overwritten" in refused.complaint) == (2, True)
    assert (tmp_path / "thesis.tex").read_text() == "important"


def test_a_folder_that_cannot_be_made_is_a_failure(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = here("distill", *QUIET, "--out", tmp_path / "file" / "run")
    assert ended.code == 1
    assert f"cannot write {tmp_path / 'file' / 'run'}: Not a directory" in ended.complaint


@pytest.mark.parametrize(("option", "before", "now"), [("seed", 0, 5), ("recipe.batch_size", 20, 10)])
def test_a_run_is_not_resumed_with_another_configuration(
    here: Here, finished: tuple[Path, Ended], option: str, before: int, now: int
) -> None:
    ended = here("distill", "--config", finished[0] / "config.yaml", "--resume", f"--{option}", now)
    assert ended.code == 2
    assert f"cannot be resumed with another configuration: {option} was {before}, is now {now}" in ended.complaint


def test_a_bench_does_not_run_under_torchrun(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    ended = here("bench", *DATA, "--out", tmp_path / "bench")
    assert (ended.code, "without torchrun" in ended.complaint) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_something_to_resume(here: Here, tmp_path: Path) -> None:
    ended = here("distill", *QUIET, "--out", tmp_path / "none", "--resume")
    assert ended.code == 2
    assert "there is no run to resume" in ended.complaint


def test_a_loss_that_explodes_ends_in_one_line(here: Here, tmp_path: Path) -> None:
    ended = here("distill", *DATA, "--recipe.epochs", "3", "--recipe.lr", "1e9", "--quiet", "--out", tmp_path / "run")
    assert ended.code == 1
    assert "the loss became nan" in ended.complaint
    assert "lower --recipe.lr" in ended.complaint


def test_a_damaged_cell_of_a_bench_is_named(here: Here, bench: Path, tmp_path: Path) -> None:
    shutil.copytree(bench, tmp_path / "bench")
    result = tmp_path / "bench" / "cells" / "kd-seed1" / "result.json"
    result.write_text(result.read_text()[:20])
    ended = here(*("bench", "--config", bench / "config.yaml", "--out", tmp_path / "bench"), "--resume", "--quiet")
    assert ended.code == 2
    assert f"{result} is damaged; remove it" in ended.complaint


def test_code_of_a_stored_model_runs_only_when_it_is_allowed(
    here: Here, finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "teacher", tmp_path / "model")
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    about["architecture"] = "os:getcwd"
    (tmp_path / "model" / "model.json").write_text(json.dumps(about))
    ended = here("export", tmp_path / "model", "--out", tmp_path / "out")
    assert ended.code == 2
    assert "os:getcwd" in ended.complaint
    assert "allow_import" in ended.complaint


def test_an_unknown_export_format_is_answered_with_the_nearest(here: Here, finished: tuple[Path, Ended]) -> None:
    ended = here("export", finished[0], "--formats", "onxx")
    assert (ended.code, "did you mean 'onnx'?" in ended.complaint) == (2, True)


def test_every_method_is_named_where_none_is_near(here: Here) -> None:
    complaint = here("methods", "zzz").complaint
    assert all(name in complaint for name in METHODS)
