"""A whole distillation: what it writes is what it measured, resumes exactly, and refuses before it writes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.bench import bench
from stillroom.distillation.distill import Distilled, distill
from stillroom.distillation.evaluate import evaluate
from stillroom.errors import InputError, OutputError
from stillroom.models.composed import ReusedClassifier
from stillroom.models.create import create_model
from stillroom.models.store import ModelCard, load_model, save_model, weights_hash
from stillroom.training._sums import EpochSums
from stillroom.training.recipe import Recipe

VIT = "distillation.pipeline_networks:vit"
DATA = DataOptions(name="digits", per_class=10)
RECIPE = Recipe(epochs=1, batch_size=32, lr=0.02)


def run(out: Path, **options: Any) -> Distilled:
    """Distil resnet8 from resnet8 on a few digits, unless told otherwise."""
    given: dict[str, Any] = {
        "student": "resnet8",
        "teacher": "resnet8",
        "data": DATA,
        "recipe": RECIPE,
        "method": "kd",
        "baseline": False,
        "device": "cpu",
        "show_progress": False,
    }
    return distill(out=out, **{**given, **options})


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def timeless(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics file without what a clock measured."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in lines(file)]


FULL: dict[str, Any] = {
    "method": "simkd",
    "baseline": True,
    "data": replace(DATA, holdout=0.1),
    "recipe": replace(RECIPE, epochs=2, batch_size=30),
    "tensorboard": True,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    """A finished run: a teacher trained, the student alone and distilled by SimKD, over two epochs."""
    return run(tmp_path_factory.mktemp("runs") / "whole", **FULL)


@pytest.fixture(scope="module")
def teacher(whole: Distilled) -> str:
    """The directory of the trained teacher."""
    return str(whole.out / "teacher")


def test_the_result_is_what_the_metrics_end_with(whole: Distilled) -> None:
    stored = json.loads((whole.out / "result.json").read_text())
    assert stored == whole.result
    reached = {model["name"]: 100 * model["accuracy"] for model in stored["models"]}
    for name, part in (("teacher", "teacher"), ("student alone", "alone"), ("student distilled", ".")):
        records = lines(whole.out / part / "metrics.jsonl")
        assert [record["epoch"] for record in records] == [1, 2]
        assert reached[name] == pytest.approx(records[-1]["test_accuracy"])


def test_the_best_epoch_is_chosen_on_the_held_out_split(whole: Distilled) -> None:
    best = max(lines(whole.out / "metrics.jsonl"), key=lambda record: record["holdout_accuracy"])
    assert whole.result["best_on_holdout"]["epoch"] == best["epoch"]
    assert whole.result["best_on_holdout"]["test_accuracy"] == best["test_accuracy"]
    assert whole.result["data"]["splits"]["holdout"]["images"] == 10


def test_the_page_says_the_numbers_of_the_result(whole: Distilled) -> None:
    words = re.sub(r"<[^>]+>", " ", (whole.out / "report.html").read_text())
    for model in whole.result["models"]:
        assert f"{100 * model['accuracy']:.2f}" in words
        assert f"{model['latency_ms']:,.2f}" in words
    assert f"{whole.result['best_on_holdout']['holdout_accuracy']:.2f} % held out" in words


def test_tensorboard_gets_every_epoch(whole: Distilled) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(whole.out / "tensorboard")).Reload()
    seen = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars("test_accuracy")]
    assert [(record["epoch"], record["test_accuracy"]) for record in lines(whole.out / "metrics.jsonl")] == seen


def test_the_stored_student_predicts_what_the_returned_one_does(whole: Distilled) -> None:
    loaded = load_model(whole.out)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), whole.model(images))
    assert loaded.card.classes == tuple("0123456789")
    assert isinstance(loaded.model, ReusedClassifier)


def test_resuming_a_finished_run_changes_nothing(whole: Distilled) -> None:
    files = [whole.out / part / "metrics.jsonl" for part in ("teacher", "alone", ".")]
    before = [file.read_bytes() for file in files]
    again = run(whole.out, **FULL, resume=True)
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in whole.rows]
    assert weights_hash(again.model) == weights_hash(whole.model)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(("stage", "step"), [("teacher", 4), ("alone", 10), ("distilled", 15)])
def test_a_run_killed_in_any_stage_resumes_to_the_same_result(
    stage: str, step: int, whole: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = EpochSums.add, 0

    def killed(self: EpochSums, *given: Any) -> None:
        nonlocal done
        done += 1
        if done == step:
            raise KeyboardInterrupt
        real(self, *given)

    monkeypatch.setattr(EpochSums, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", **FULL, checkpoint_every=1)
    monkeypatch.setattr(EpochSums, "add", real)
    assert (tmp_path / "run" / "alone").exists() == (stage != "teacher")
    assert (tmp_path / "run" / "checkpoints").exists() == (stage == "distilled")
    resumed = run(tmp_path / "run", **FULL, resume=True)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    for part in ("teacher", "alone", "."):
        assert timeless(tmp_path / "run" / part / "metrics.jsonl") == timeless(whole.out / part / "metrics.jsonl")


@pytest.mark.filterwarnings("ignore:reviewkd pairs stages:UserWarning")
@pytest.mark.parametrize(
    ("method", "student", "learns_from"),
    [("simkd", VIT, None), ("semckd", VIT, None), ("crd", VIT, None), ("reviewkd", "resnet8", VIT)],
)
def test_convolutional_networks_and_transformers_teach_each_other(
    method: str, student: str, learns_from: str | None, teacher: str, tmp_path: Path
) -> None:
    done = run(tmp_path / "run", method=method, student=student, teacher=learns_from or teacher)
    loaded = load_model(done.out, allow_import=True)
    images = load_data(DATA).test.subset(torch.arange(4))
    with torch.no_grad():
        pixels = torch.stack([images.pixels[i].float() for i in range(4)])
        torch.testing.assert_close(loaded.model(pixels), done.model(pixels))


def test_a_student_of_simkd_teaches_another_by_simkd(whole: Distilled, tmp_path: Path) -> None:
    second = run(tmp_path / "second", method="simkd", teacher=str(whole.out))
    assert second.rows[0].accuracy == whole.rows[-1].accuracy
    assert evaluate(str(second.out), DATA, device="cpu")["accuracy"] == pytest.approx(100 * second.rows[-1].accuracy)


def small_folder(root: Path) -> Path:
    """Write three digits as png of all kinds, under names of their own."""
    bunch = load_digits()
    kinds = ("RGBA", "L", "P", "LA")
    for label, name in ((7, "seven"), (1, "one"), (3, "three")):
        (root / name).mkdir(parents=True)
        for count, picture in enumerate(bunch.images[bunch.target == label][:24]):
            grey = Image.fromarray((picture * 255 / 16).astype(np.uint8))
            grey.convert(kinds[count % 4]).save(root / name / f"{count:02d}.png")
    return root


def test_pngs_of_mixed_kinds_become_one_coloured_set(tmp_path: Path) -> None:
    images = load_data(DataOptions(name=f"folder:{small_folder(tmp_path / 'png')}"))
    assert images.shape == (3, 8, 8)
    assert bool((images.train.pixels == images.train.pixels[:, :1]).all())  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["simkd", "srrl"])
def test_a_label_map_selects_and_orders_the_teachers_classes(method: str, teacher: str, tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "png")
    for file in folder.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    data = DataOptions(name=f"folder:{folder}")
    names = {"one": "1", "seven": "7", "three": "3"}
    done = run(tmp_path / "run", method=method, teacher=teacher, data=data, label_map=names)
    images = load_data(data)
    loaded = load_model(teacher)
    pixels = images.test.pixels.float() / 255  # type: ignore[union-attr]
    with torch.no_grad():
        logits = loaded.model((pixels - loaded.card.mean[0]) / loaded.card.std[0])[:, [1, 7, 3]]
    assert images.classes == ("one", "seven", "three") == load_model(done.out).card.classes
    assert done.rows[0].accuracy == (logits.argmax(1) == images.test.target).float().mean().item()


def test_a_teacher_cache_answers_as_the_teacher_and_is_found_again(teacher: str, tmp_path: Path) -> None:
    seen = replace(DATA, views=2)
    cached: dict[str, Any] = {"teacher": teacher, "data": seen, "teacher_cache": tmp_path / "cache"}
    live = run(tmp_path / "live", teacher=teacher, data=seen)
    first = run(tmp_path / "first", **cached)
    caches = list((tmp_path / "cache").iterdir())
    assert first.rows[-1].accuracy == live.rows[-1].accuracy
    expected, found = (lines(out / "metrics.jsonl")[0]["train_loss"] for out in (live.out, first.out))
    assert found == pytest.approx(expected, rel=1e-5)
    written = [file.stat().st_mtime_ns for file in caches[0].iterdir()]
    run(tmp_path / "second", **cached, method="srrl")
    assert list((tmp_path / "cache").iterdir()) == caches
    assert [file.stat().st_mtime_ns for file in caches[0].iterdir()] == written
    run(tmp_path / "third", **cached, seed=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_modules_handed_over_stay_as_they_were(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )

    mine = net(), net()
    before = copy.deepcopy(mine)
    run(tmp_path / "run", student=mine[0], teacher=mine[1], method="simkd", student_taps=["1"], teacher_taps=["1"])
    for module, untouched in zip(mine, before, strict=True):
        assert weights_hash(module) == weights_hash(untouched)
        assert module.training
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_teacher_with_weights_adapts_to_the_data_when_epochs_are_given(teacher: str, tmp_path: Path) -> None:
    spec = f"resnet8@{teacher}/model.safetensors"
    run(tmp_path / "kept", teacher=spec)
    assert not (tmp_path / "kept" / "teacher").exists()
    run(tmp_path / "run", teacher=spec, teacher_epochs=1)
    adapted = load_model(tmp_path / "run" / "teacher").model.state_dict()
    steps = adapted["bn1.num_batches_tracked"] - load_model(teacher).model.state_dict()["bn1.num_batches_tracked"]
    assert int(steps) == 100 // RECIPE.batch_size


def test_evaluation_agrees_with_the_run_and_refuses_names_without_weights(whole: Distilled, teacher: str) -> None:
    found = evaluate(teacher, DATA, device="cpu")
    assert found["accuracy"] == pytest.approx(100 * whole.rows[0].accuracy)
    assert (found["parameters"], found["flops"]) == (whole.rows[0].parameters, whole.rows[0].flops)
    with pytest.raises(InputError, match="resnet8 has no weights to evaluate"):
        evaluate("resnet8", DATA, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1; it must not be negative"),
        ({"eval_every": 0}, "eval_every is 0; it must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"teacher_epochs": 0}, "teacher_epochs is 0"),
        ({"temperature": 0.0, "method": "semckd"}, "temperature must be a finite number above 0"),
        ({"data": DataOptions(per_class=2)}, "20 training images do not fill a batch of 32; lower --recipe.batch_size"),
        ({"label_map": {"eins": "1"}}, "names 'eins', which is no class of the data"),
        ({"method": "simkd", "teacher": VIT}, "simkd needs a teacher whose classifier sits directly on"),
        ({"method": "simkd", "teacher_cache": "cache", "data": replace(DATA, augment="none")}, "the teacher's stages"),
        ({"teacher_cache": "cache"}, "needs pictures that come again"),
        ({"teacher": "runs/none"}, "runs/none/model.json does not exist"),
        ({"teacher": nn.Sequential(nn.Conv2d(1, 7, 8), nn.Flatten())}, r"Sequential answers \[7\] .* has 10 classes"),
        ({"student": "runs/some"}, "to start from stored weights write NAME@runs/some/model.safetensors"),
        ({"precision": "16-mixed"}, "precision '16-mixed' needs an accelerator"),
        ({"precision": "64"}, "unknown precision '64'"),
        ({"student_taps": ["layer9"]}, "no module 'layer9' to tap; did you mean 'layer"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_is_neither_trained_further_nor_overwritten_while_it_teaches(
    whole: Distilled, teacher: str
) -> None:
    with pytest.raises(InputError, match=r"teacher_epochs asks to train the teacher, but .* is trained"):
        run(whole.out, teacher=teacher, teacher_epochs=2, overwrite=True)
    with pytest.raises(InputError, match=r"lies in .*, which would be emptied"):
        run(whole.out, teacher=teacher, overwrite=True)
    assert (whole.out / "teacher" / "model.safetensors").is_file()


def test_a_transformer_of_another_size_is_refused_as_a_teacher(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    card = ModelCard(
        architecture=name, num_classes=10, classes=tuple("0123456789"), mean=(0.3,), std=(0.4,), input_shape=(1, 32, 32)
    )
    save_model(tmp_path / "net", create_model(name, num_classes=10, in_channels=1, image_size=32), card)
    with pytest.raises(InputError, match=r"takes images of 32x32 pixels and not those of digits .*image_size 32"):
        run(tmp_path / "run", teacher=str(tmp_path / "net"), data=replace(DATA, image_size=48))


def test_a_bench_pairs_cells_of_the_same_seed_and_keeps_finished_ones(teacher: str, tmp_path: Path) -> None:
    def again(**options: Any) -> Callable[[], Any]:
        given: dict[str, Any] = {
            "teacher": teacher,
            "student": "resnet8",
            "data": DATA,
            "recipe": RECIPE,
            "device": "cpu",
        }
        return lambda: bench(out=tmp_path / "bench", show_progress=False, **{**given, **options})

    first = again(methods=("alone", "kd"), seeds=(0,))()
    second = again(methods=("alone", "kd"), seeds=(0, 1), resume=True)()
    assert second.result["cells"]["kd"]["0"] == first.result["cells"]["kd"]["0"]
    assert second.result["cells"]["kd"].keys() == {"0", "1"}
    alone = run(tmp_path / "distil", teacher=teacher, baseline=True).rows[1].accuracy
    assert first.result["cells"]["alone"]["0"]["test_accuracy"] == pytest.approx(100 * alone)
    with pytest.raises(InputError, match="seed -1 is negative"):
        again(seeds=(-1,))()


def test_a_cache_folder_that_is_a_file_is_one_line_and_what_was_trained_stays(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        run(tmp_path / "run", teacher_cache=tmp_path / "cache", data=replace(DATA, augment="none"))
    assert (tmp_path / "run" / "teacher" / "model.safetensors").is_file()


@pytest.mark.shared_data
def test_a_released_network_reaches_what_its_readme_records(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("STILLROOM_DATA", str(shared_data))
    weights = shared_data / "cifar10-resnets" / "resnet20-jpeg.safetensors"
    found = evaluate(f"resnet20_a@{weights}", "cifar10", "imagenet", device="cpu")
    assert found["images"] == 10_000
    assert found["parameters"] == 269_722
    assert found["accuracy"] == pytest.approx(88.15, abs=0.1)
