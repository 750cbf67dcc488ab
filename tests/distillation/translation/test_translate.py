"""The whole job on digits: files, resumption, evaluation, command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillroom.cli._translate import run
from stillroom.data.options import DataOptions
from stillroom.distillation.translation import evaluate, training
from stillroom.distillation.translation.evaluate import SMALL, TRANSLATED, count_flops, translated_blocks
from stillroom.distillation.translation.kt import KT
from stillroom.distillation.translation.pairs import PairOptions, Pairs
from stillroom.distillation.translation.training import TranslationTask
from stillroom.distillation.translation.translate import RECIPE, Translated, load_translator, translate
from stillroom.distillation.translation.translator import Translator
from stillroom.errors import InputError

METHOD = KT(layers=1, channels=8, hidden_tokens=8, hidden_channels=8, mask=0.1, noise=0.01, augmented="both")
PAIRS = PairOptions(count=6, validation=3, epochs=1, images=64, group=2)
RECIPE_ = replace(RECIPE, epochs=4, batch_size=4)


def job(out: Path, **others: Any) -> Translated:
    options: dict[str, Any] = {"method": METHOD, "pairs": PAIRS, "recipe": RECIPE_, "steps": (0, 1, 3)}
    options |= {"eval_every": 2, "device": "cpu", "show_progress": False}
    return translate(out=out, **(options | others))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Translated:
    return job(tmp_path_factory.mktemp("translation") / "run")


def test_the_run_directory_holds_everything(done: Translated) -> None:
    names = {entry.name for entry in done.out.iterdir()}
    files = {"config.yaml", "metrics.jsonl", "model.safetensors", "model.json", "result.json", "report.html"}
    assert names == files | {"checkpoints", "pairs"}
    assert json.loads((done.out / "result.json").read_text())["at_once"] == done.result["at_once"]
    page = (done.out / "report.html").read_text()
    for word in ("300,000", "translated", "mean of the pairs", "MFLOP"):
        assert word in page
    metrics = [json.loads(line) for line in (done.out / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in metrics] == [1, 2, 3, 4]
    assert [record["epoch"] for record in metrics if "translated_accuracy" in record] == [2, 4]


def test_the_kept_epoch_is_the_best_on_held_out_images(done: Translated) -> None:
    metrics = [json.loads(line) for line in (done.out / "metrics.jsonl").read_text().splitlines()]
    best = max(
        (r for r in metrics if "translated_accuracy" in r), key=lambda r: (r["translated_accuracy"], -r["epoch"])
    )
    assert done.result["kept"]["epoch"] == best["epoch"]
    assert done.result["kept"]["held_out_accuracy"] == best["translated_accuracy"]


def test_a_stored_translator_writes_the_same_blocks(done: Translated) -> None:
    translator = load_translator(done.out)
    tokens = torch.randn(2, 72, 9)
    assert torch.equal(translator(tokens), done.translator(tokens))
    assert not translator.training


def test_every_arm_starts_where_its_block_stands_and_has_a_value_for_all_steps(done: Translated) -> None:
    at_once, after = done.result["at_once"], done.result["after"]
    assert len(after) == 6
    for arm, values in after.items():
        assert len(values) == 3
        assert values[0] == at_once[arm.rpartition(", ")[0]]
        assert all(len(row) == PAIRS.validation for row in values)


def test_equal_starts_have_equal_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All arms see the same images: what is translated to a random block's very weights does as well as that block."""

    def random_ones(translator: Translator, networks: Mapping[str, Any]) -> Any:
        device = torch.device("cpu")
        return evaluate._random_blocks(PAIRS.validation, PAIRS, 0, device)

    monkeypatch.setattr(evaluate, "translated_blocks", random_ones)
    result = job(tmp_path / "run").result
    for loss in evaluate.LOSSES:
        assert result["after"][f"translated, {loss}"] == result["after"][f"random small block, {loss}"]


def test_an_oracle_translator_is_scored_like_the_trained_small_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Pairs] = []
    real = training.train_translator

    def remember(pairs: Pairs, *arguments: Any, **options: Any) -> Any:
        kept.append(pairs)
        return real(pairs, *arguments, **options)

    monkeypatch.setattr("stillroom.distillation.translation.translate.train_translator", remember)
    monkeypatch.setattr(evaluate, "translated_blocks", lambda *_: dict(kept[0].trained))
    at_once = job(tmp_path / "run").result["at_once"]
    assert at_once[TRANSLATED] == at_once[SMALL]


def test_translation_reads_each_network_by_itself(done: Translated) -> None:
    translator = load_translator(done.out)
    shard = load_file(done.out / "pairs/validation-000000.safetensors")
    networks = {name.replace("large.", "block."): value for name, value in shard.items()}
    together = translated_blocks(translator, networks)
    alone = translated_blocks(translator, {name: value[1:] for name, value in networks.items()})
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:], value)


def test_a_run_killed_in_training_ends_with_the_same_weights(
    done: Translated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    out, real, calls = tmp_path / "run", TranslationTask.forward, iter(range(1, 99))

    def dies(self: TranslationTask, batch: Any) -> Any:
        if next(calls) == 6:  # the second step of epoch 3, after the first best epoch was noted
            raise KilledError
        return real(self, batch)

    monkeypatch.setattr(TranslationTask, "forward", dies)
    with pytest.raises(KilledError):
        job(out, checkpoint_every=1)
    monkeypatch.setattr(TranslationTask, "forward", real)
    resumed = job(out, checkpoint_every=1, resume=True)
    for name, value in done.translator.state_dict().items():
        assert torch.equal(resumed.translator.state_dict()[name], value), name
    for key in ("at_once", "after", "kept", "train_loss"):
        assert resumed.result[key] == done.result[key], key


def test_pairs_of_another_run_can_be_taken(done: Translated, tmp_path: Path) -> None:
    folder = done.out / "pairs"
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    taken = job(tmp_path / "run", pairs=replace(PAIRS, folder=str(folder)))
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert taken.result["at_once"] == done.result["at_once"]
    with pytest.raises(InputError, match="emptied"):
        job(done.out, pairs=replace(PAIRS, folder=str(folder)), overwrite=True)


def test_without_held_out_images_the_last_epoch_is_kept(tmp_path: Path) -> None:
    result = job(tmp_path / "run", data=DataOptions(), steps=(0,)).result
    assert result["kept"] == {"epoch": RECIPE_.epochs, "held_out_accuracy": None}
    assert any("held out" in note for note in result["notes"])


def test_distillation_and_translation_are_counted() -> None:
    translator = KT(layers=0, channels=9, hidden_tokens=4).build(6)
    flops = count_flops(translator, (1, 8, 8), 10, PAIRS)
    assert flops.translation == 2 * 9 * (72 * 4 + 4 * 36)
    # Distilling adds a forward pass of 32 images through the teacher's large block, on 4×4 maps, and its last.
    large, behind = 2 * 6 * 6 * 9 * 16, 6 * 12 * 4 + 48 * 10
    assert flops.step_distillation - flops.step == 2 * 32 * (large + behind)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": (1, 5)}, "steps"),
        ({"steps": (0, 5, 5)}, "steps"),
        ({"seed": -1}, "seed"),
        ({"jobs": 0}, "jobs"),
        ({"eval_every": 0}, "eval_every"),
        ({"data": DataOptions(augment="crop")}, "flip"),
        ({"data": "digitz"}, "digits"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        job(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


SHORT = ["--pairs.count", "4", "--pairs.validation", "2", "--pairs.epochs", "1", "--pairs.images", "64", "--quiet"]
SHORT += ["--recipe.epochs", "1", "--steps", "0,1", "--method.layers", "1", "--device", "cpu"]


@pytest.mark.parametrize("named", [["--method", "kt"], ["--method.name", "kt"], ["--method=kt"], []])
def test_the_command_line_takes_the_method_s_name_or_none(
    named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*named, *SHORT, "--out", str(tmp_path / "run")]) == 0
    assert "report:" in capsys.readouterr().out


def test_a_run_s_configuration_runs_again_to_the_same_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--method", "kt", *SHORT, "--json", "--out", str(tmp_path / "a")]) == 0
    first = json.loads(capsys.readouterr().out)
    config = ["--config", str(tmp_path / "a/config.yaml"), "--quiet", "--json"]
    assert run(["--method", "kt", *config, "--out", str(tmp_path / "b")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["at_once"] == first["at_once"]


def test_unknown_options_are_named() -> None:
    with pytest.raises(InputError, match=r"--pairs\.cout"):
        run(["--method", "kt", "--pairs.cout", "3"])
