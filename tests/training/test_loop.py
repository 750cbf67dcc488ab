"""The training loop."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.data.batch import Batch
from stillroom.errors import InputError, OutputError, TrainingDivergedError
from stillroom.training import progress
from stillroom.training.fabric import make_fabric
from stillroom.training.loop import fit, supervised_step
from stillroom.training.recipe import lr_at
from stillroom.training.run import RunDirectory
from stillroom.training.supervised import Supervised


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_loop_equals_a_hand_written_one_bit_for_bit(toy: ModuleType) -> None:
    loader, recipe = toy.ToyLoader(), replace(toy.RECIPE, clip_norm=0.5)
    task = toy.ToyTask(noisy=False)
    toy.train(task, None, recipe=recipe)

    by_hand = toy.ToyTask(noisy=False)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3, fused=True)
    for epoch in (1, 2, 3):
        optimizer.param_groups[0]["lr"] = lr_at(recipe, epoch)
        for batch in loader.epoch(epoch):
            F.cross_entropy(by_hand.net(batch.images), batch.target).backward()
            nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    assert_same_state(task, by_hand)


def test_records_hold_means_over_the_samples(toy: ModuleType) -> None:
    task = toy.ToyTask(noisy=False)
    recipe = replace(toy.RECIPE, epochs=1, lr=1e-12, weight_decay=0.0)  # the weights stand still
    (record,) = toy.train(task, None, recipe=recipe)
    loader = toy.ToyLoader()
    logits = task.predict(loader.points)
    loss = F.cross_entropy(logits, loader.target).item()
    assert record["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert record["train_half"] == pytest.approx(loss / 2, rel=1e-5)
    assert record["train_accuracy"] == 100 * (logits.argmax(1) == loader.target).sum().item() / 64
    assert record["accuracy"] == record["train_accuracy"]
    assert record["epoch"] == 1
    assert record["lr"] == 1e-12


def test_a_smaller_last_batch_counts_by_its_samples(toy: ModuleType) -> None:
    class Uneven(toy.ToyLoader):
        def __len__(self) -> int:
            return 2

        def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
            index = torch.arange(64)
            for part in [index[:60], index[60:]][start:]:
                yield Batch(self.points[part], self.target[part], part)

    task = toy.ToyTask(noisy=False)
    recipe = replace(toy.RECIPE, epochs=1, lr=1e-12, weight_decay=0.0)
    (record,) = toy.train(task, None, recipe=recipe, loader=Uneven())
    loader = toy.ToyLoader()
    expected = F.cross_entropy(task.predict(loader.points), loader.target).item()
    assert record["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_task_hears_each_epoch_and_trains_in_training_mode_after_every_evaluation(toy: ModuleType) -> None:
    modes: list[bool] = []
    task = toy.ToyTask().eval()
    task.before_step = lambda step: modes.append(all(module.training for module in task.modules()))

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert not any(inner.training for inner in module.modules())
        assert not torch.is_grad_enabled()
        return {"seen": 1.0}

    history = toy.train(task, None, evaluate=evaluate)
    assert task.epochs == [1, 2, 3]
    assert modes == [True] * 24
    assert task.training
    assert [record["seen"] for record in history] == [1.0] * 3


def test_evaluation_happens_every_so_many_epochs_and_at_the_end(toy: ModuleType) -> None:
    recipe = replace(toy.RECIPE, epochs=5)
    history = toy.train(toy.ToyTask(), None, recipe=recipe, eval_every=2)
    assert ["accuracy" in record for record in history] == [False, True, False, True, True]


def test_the_result_depends_on_the_seed_only_and_the_callers_random_state_stays(toy: ModuleType) -> None:
    tasks = [toy.ToyTask() for _ in range(3)]
    for task, seed, outer in zip(tasks, (7, 7, 8), (1, 2, 1), strict=True):
        torch.manual_seed(outer)
        random.seed(outer)
        before = torch.get_rng_state(), random.getstate()
        toy.train(task, None, seed=seed)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()
    assert_same_state(tasks[0], tasks[1])
    assert not torch.equal(tasks[0].net[1].weight, tasks[2].net[1].weight)


def test_adamw_and_bfloat16_train(toy: ModuleType) -> None:
    recipe = replace(toy.RECIPE, optimizer="adamw", lr=0.05, epochs=8)
    fabric = make_fabric("cpu", "bf16-mixed")
    history = toy.train(toy.ToyTask(noisy=False), None, recipe=recipe, fabric=fabric)
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["train_accuracy"] > 85


def test_a_compiled_task_ends_where_the_eager_one_does(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:  # the default one takes half a minute
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    eager, compiled = (Supervised(toy.ToyTask(noisy=False).net) for _ in range(2))
    toy.train(eager, None)
    toy.train(compiled, None, compile=True)
    assert len(graphs) == 1
    assert_same_state(eager, compiled)


class HostReads(TorchDispatchMode):
    """Counts what copies a tensor's value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def host_reads_of_an_epoch(toy: ModuleType, steps: int) -> int:
    loader = toy.ToyLoader(samples=8 * steps)
    recipe = replace(toy.RECIPE, epochs=1, clip_norm=1.0)
    with HostReads() as reads:
        toy.train(toy.ToyTask(noisy=False), None, recipe=recipe, loader=loader, evaluate=None)
    return reads.count


def test_more_steps_do_not_read_more_on_the_host(toy: ModuleType) -> None:
    assert host_reads_of_an_epoch(toy, 4) == host_reads_of_an_epoch(toy, 32)


class Exploding(Supervised):
    """Its loss is multiplied by a factor from one step on."""

    def __init__(self, net: nn.Module, factor: float, from_step: int) -> None:
        super().__init__(net)
        self.factor, self.from_step, self.step = factor, from_step, 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.step += 1
        parts = super().forward(batch)
        return parts | {"loss": parts["loss"] * (self.factor if self.step >= self.from_step else 1.0)}


@pytest.mark.parametrize(("factor", "word"), [(math.nan, "nan"), (math.inf, "infinite|nan")])
def test_a_loss_that_is_not_finite_stops_with_one_line_and_no_checkpoint_of_it(
    toy: ModuleType, tmp_path: Path, factor: float, word: str
) -> None:
    task = Exploding(toy.ToyTask().net, factor, from_step=13)
    message = rf"the loss became ({word}) in epoch 2 \(steps \d+ to \d\); lower --recipe.lr, now 0.05"
    with pytest.raises(TrainingDivergedError, match=message) as caught:
        toy.train(task, tmp_path, checkpoint_every=2)
    assert "\n" not in str(caught.value)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["epoch-00002-step-0000002.pt", "epoch-00002-step-0000004.pt"]
    for name in kept:
        state = torch.load(tmp_path / "checkpoints" / name, weights_only=True)
        assert all(value.isfinite().all() for value in state["task"].values())


def test_weights_that_overflow_in_the_last_step_are_not_saved(toy: ModuleType, tmp_path: Path) -> None:
    task = toy.ToyTask()

    def step(*arguments: Any) -> dict[str, Tensor]:
        parts = supervised_step(*arguments)
        if task.steps == 16:  # the second epoch's last: no loss will see it
            task.net[1].weight.data.mul_(1e38).mul_(1e38)
        return parts

    with pytest.raises(TrainingDivergedError, match="a weight became nan or infinite"):
        toy.train(task, tmp_path, step=step, evaluate=None)
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["epoch-00002-step-0000000.pt"]


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_is_one_line_and_the_run_resumes_exactly(toy: ModuleType, tmp_path: Path) -> None:
    expected = toy.ToyTask()
    expected_history = toy.train(expected, None)
    size = 0

    def evaluate_then_fill_up(task: nn.Module) -> dict[str, float]:
        nonlocal size
        checkpoints = sorted((tmp_path / "checkpoints").iterdir())
        if len(checkpoints) == 2:
            size = checkpoints[-1].stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return {}

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OutputError, match=r"cannot write .*epoch-00002-step-0000000\.pt") as caught:
            toy.train(toy.ToyTask(), tmp_path, evaluate=evaluate_then_fill_up, checkpoint_every=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch-00001-step-0000003.pt", "epoch-00001-step-0000006.pt"]
    resumed = toy.ToyTask()
    history = toy.train(resumed, tmp_path, resume=True)
    assert_same_state(expected, resumed)
    assert toy.without_times(history) == toy.without_times(expected_history)


def test_metrics_that_do_not_fit_leave_whole_lines_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_history([{"epoch": 1}])
    before = run.metrics.read_bytes()
    with files_limited_to(len(before) + 5), pytest.raises(OutputError, match=r"metrics\.jsonl"):
        run.append_metrics({"epoch": 2, "train_loss": 0.25})
    assert run.metrics.read_bytes() == before


@pytest.mark.parametrize("option", ["eval_every", "checkpoint_every"])
def test_intervals_below_one_are_refused(toy: ModuleType, option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{option} is 0; it must be at least 1"):
        fit(toy.ToyTask(), toy.ToyLoader(), toy.RECIPE, seed=0, run=RunDirectory(tmp_path), **{option: 0})


def test_a_loader_without_batches_and_options_without_a_run_are_refused(toy: ModuleType) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        toy.train(toy.ToyTask(), None, loader=toy.ToyLoader(samples=4))
    with pytest.raises(InputError, match="need a run directory"):
        toy.train(toy.ToyTask(), None, resume=True)


def test_progress_is_one_line_an_epoch_off_a_terminal(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    toy.train(toy.ToyTask(), None, show_progress=True, label="student")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split("  loss")[0] for line in lines] == [f"student  epoch {n}/3" for n in (1, 2, 3)]
    assert all(" train " in line and " accuracy " in line and " img/s  eta 0:0" in line for line in lines)


def test_epochs_without_an_evaluation_are_passed_over_off_a_terminal(
    toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(toy.RECIPE, epochs=5)
    toy.train(toy.ToyTask(), None, show_progress=True, label="student", eval_every=2, recipe=recipe)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  loss")[0] for line in lines] == [f"student  epoch {n}/5" for n in (2, 4, 5)]


def test_a_long_silence_is_broken_by_an_epoch_without_an_evaluation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SILENCE", 0.0)
    with progress.Progress("student", 2, 1, unit="nodes") as shown:
        shown.epoch(1, {"train_loss": 1.0, "nodes_per_second": 7.0}, evaluated=False)
    assert "student  epoch 1/2  loss 1  7 nodes/s  eta" in capsys.readouterr().err


def test_every_score_is_shown_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"train_loss": 0.5, "val_micro_f1": 71.25, "test_accuracy": 70.0, "val_loss": 3.0, "nodes_per_second": 9.0}
    with progress.Progress("", 1, 1, unit="nodes") as shown:
        shown.epoch(1, record)
    assert "epoch 1/1  loss 0.5  val 71.2%  test 70.0%  9 nodes/s" in capsys.readouterr().err


def test_speed_is_counted_in_the_loaders_unit(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    history = toy.train(toy.ToyTask(), None, unit="nodes", show_progress=True)
    assert all(record["nodes_per_second"] > 0 and "images_per_second" not in record for record in history)
    assert all(" nodes/s " in line for line in capsys.readouterr().err.splitlines())


def test_the_undecayed_train_as_without_weight_decay(toy: ModuleType) -> None:
    plain, exempt, decayed = (toy.ToyTask() for _ in range(3))
    toy.train(plain, None, recipe=replace(toy.RECIPE, weight_decay=0.0))
    toy.train(exempt, None, undecayed=list(exempt.parameters()))
    toy.train(decayed, None)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, exempt.state_dict()[name])
    assert not torch.equal(plain.net[1].weight, decayed.net[1].weight)


def test_epochs_shorter_than_the_time_between_checkpoints_leave_none_but_the_last(
    toy: ModuleType, tmp_path: Path
) -> None:
    expected = toy.train(toy.ToyTask(), tmp_path / "whole", checkpoint_seconds=3600.0)
    assert [path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()] == ["epoch-00004-step-0000000.pt"]

    def interrupt(task: Any) -> dict[str, float]:
        if task.epochs[-1] == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        toy.train(toy.ToyTask(), tmp_path / "cut", checkpoint_seconds=3600.0, evaluate=interrupt)
    assert not (tmp_path / "cut" / "checkpoints").exists()
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 2
    resumed = toy.train(toy.ToyTask(), tmp_path / "cut", checkpoint_seconds=3600.0, resume=True)
    assert toy.without_times(resumed) == toy.without_times(expected)
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 3


def test_tensorboard_gets_each_epoch(toy: ModuleType, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = toy.train(toy.ToyTask(), tmp_path, tensorboard=True)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = events.Scalars("train_loss")
    assert [event.step for event in logged] == [1, 2, 3]
    assert [event.value for event in logged] == pytest.approx([record["train_loss"] for record in history])
