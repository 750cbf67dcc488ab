"""Distil with any method in a plain PyTorch loop: no trainer, no run directory, no command line but three options.

python own_loop.py simkd --epochs 25
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.data.loaders import EvalLoader, TrainLoader
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.methods import method_class
from stillroom.distillation.offline.task import OfflineTask
from stillroom.models.create import create_model
from stillroom.models.taps import Tapped, find_taps
from stillroom.training.teacher import LiveTeacher

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("method")
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
torch.manual_seed(options.seed)

data = load_data(DataOptions(name="digits"))
normalise = {"mean": data.mean, "std": data.std}
train = TrainLoader(data.train, batch_size=64, seed=options.seed, augment=data.augment, **normalise)
test = EvalLoader(data.test, batch_size=250, **normalise)


def network(name: str) -> nn.Module:
    return create_model(name, num_classes=10, in_channels=1, image_size=8)


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        right = [(model(batch.images).argmax(1) == batch.target).float() for batch in test]
    return 100 * torch.cat(right).mean().item()


def train_for(epochs: int, task: nn.Module, loss_of) -> None:
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(1, epochs + 1):
        task.train()
        if isinstance(task, OfflineTask):
            task.start_epoch(epoch)
        for batch in train.epoch(epoch):
            optimizer.zero_grad()
            loss_of(batch).backward()
            optimizer.step()
        schedule.step()


teacher = network("resnet20")
train_for(options.epochs, teacher, lambda batch: cross_entropy(teacher(batch.images), batch.target))
print(f"teacher's accuracy: {accuracy(teacher):.2f} %")

student = network("resnet8")
method = method_class(options.method)()
sample = next(iter(train.epoch(1)))
taps, teacher_taps = find_taps(student, sample.images), find_taps(teacher, sample.images)
task = OfflineTask.build(
    Tapped(student, taps, method.signals),
    LiveTeacher(Tapped(teacher, teacher_taps, method.signals)),
    method,
    method.presets["simkd"],
    sample,
    teacher_classifier=teacher.get_submodule(teacher_taps.classifier),
    train_target=data.train.target,
    num_classes=len(data.classes),
    seed=options.seed,
)
train_for(options.epochs, task, lambda batch: task(batch)["loss"])
model = method.deploy(task.student.release().eval(), taps, sample.images)
print(f"student's accuracy: {accuracy(model):.2f} %")
