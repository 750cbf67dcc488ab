"""KD side by side: our loop, torchdistill, KD_Lib, and a loop in the style of the CRD benchmark, for the same pair.

    pip install torchdistill
    pip install --no-deps KD-Lib
    python benchmarks/peers.py --pair resnet

Each is used as its own documentation or example script uses it, the per-step logging of that script included; all
get the same batches, the same initial weights and SGD with the same numbers. A package that is not there or does not
run is reported as such.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from _loops import LR, PAIRS, RECIPE, TEMPERATURE, Pair, bare_sum, distillation, make_pair, ours, plain_kd, sgd
from _rounds import Contender, TimedLoader, compare, environment, make_batches, print_table, rounds_parser
from torch import Tensor, nn
from torch.nn import functional as F

BARE = "bare sum"


class _Pairs:
    """The timed batches as a data loader of pairs, or of triples with an empty dictionary."""

    def __init__(self, loader: TimedLoader, *extra: object) -> None:
        self.loader, self.extra = loader, extra
        self.dataset = range(len(loader) * len(loader.batches[0].target))

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[object, ...]]:
        for images, target, _ in self.loader.epoch():
            yield images, target, *self.extra


def torchdistill(pair: Pair, device: torch.device, *, eval_teacher: bool) -> Contender:
    """Return torchdistill's distillation box in the epoch loop of its image classification example.

    The example never calls ``teacher.eval()``, nor does the box: a freshly created or loaded teacher stays in training
    mode, and its batch-norm statistics move. ``eval_teacher`` calls it on the user's behalf.
    """
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    network = {"forward_proc": "forward_batch_only", "wrapper": None}
    logits = {
        f"{who}_module_{what}": value
        for who in ("student", "teacher")
        for what, value in (("path", "."), ("io", "output"))
    }
    config = {
        "num_epochs": 1,
        "teacher": network | {"requires_grad": False},
        "student": network | {"requires_grad": True},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": LR, "momentum": RECIPE.momentum, "weight_decay": RECIPE.weight_decay},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {"key": "KDLoss", "kwargs": logits | {"temperature": TEMPERATURE, "alpha": 0.5}},
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    if eval_teacher:
        pair.teacher.eval()
    box = get_distillation_box(pair.teacher, pair.student, {}, config, device, None, False, 1)

    def run(loader: TimedLoader) -> None:
        box.pre_epoch_process(epoch=0)
        log = MetricLogger(delimiter="  ")
        log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        log.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for images, target, supplement in log.log_every(_Pairs(loader, {}), 1000, "Epoch: [0]"):
            start = time.time()
            images, target = images.to(device), target.to(device)
            loss = box.forward_process(images, target, supplement)
            box.post_forward_process(loss=loss)
            log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            log.meters["img/s"].update(images.shape[0] / (time.time() - start))
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"the loss is {loss}")
        box.post_epoch_process()

    return run


def kd_lib(pair: Pair, device: torch.device) -> Contender:
    """Return ``VanillaKD.train_student`` with the defaults of KD_Lib's README (its evaluation is outside the clock)."""
    # The package imports all its parts, of which those for text need a transformers release of 2021. Only they are
    # replaced, by an empty module; the distillation of images stays as it is.
    text = types.ModuleType("KD_Lib.KD.text")
    text.BERT2LSTM = text.get_essentials = None  # type: ignore[attr-defined]
    sys.modules.setdefault("KD_Lib.KD.text", text)
    from KD_Lib.KD import VanillaKD

    unwritten = str(Path(tempfile.gettempdir()) / "student.pt")  # its folder is created even if nothing is saved

    def run(loader: TimedLoader) -> None:
        one = TimedLoader(loader.batches, warm_up=0, steps=1)
        optimizer = sgd(pair.student.parameters())
        distiller = VanillaKD(
            pair.teacher, pair.student, _Pairs(loader), _Pairs(one), None, optimizer, device=device.type
        )
        with contextlib.redirect_stdout(io.StringIO()):
            distiller.train_student(epochs=1, plot_losses=False, save_model=False, save_model_pth=unwritten)

    return run


class _Meter:
    """Last value and running mean."""

    def __init__(self) -> None:
        self.last = self.sum = self.mean = 0.0
        self.count = 0

    def update(self, value: float, count: int = 1) -> None:
        self.last = value
        self.sum += value * count
        self.count += count
        self.mean = self.sum / self.count


def _with_features(net: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return every stage's map, the pooled vector, and the logits, as that code's networks do at each call."""
    x, features = images, []
    for name, part in net.named_children():
        if name == "linear":
            break
        x = part(x)
        if name not in ("conv1", "bn1"):
            features.append(x)
    features.append(x.mean((2, 3)))
    return features, net.linear(features[-1])


def crd_style(pair: Pair, device: torch.device) -> Contender:
    """Return a loop as the CRD benchmark and its descendants write it.

    Both networks return the list of all their features at every step, whether the method reads them or not; loss and
    top-1 and top-5 accuracy are read on the host at every step and kept in meters; the optimiser is torch's default.
    """
    teacher, student = pair.teacher.eval(), pair.student.train()

    def soft_loss(logits: Tensor, answer: Tensor) -> Tensor:
        log_p, q = F.log_softmax(logits / TEMPERATURE, dim=1), F.softmax(answer / TEMPERATURE, dim=1)
        return F.kl_div(log_p, q, reduction="sum") * TEMPERATURE**2 / logits.shape[0]

    def run(loader: TimedLoader) -> None:
        optimizer = sgd(student.parameters())
        meters = {name: _Meter() for name in ("batch_time", "data_time", "loss", "top1", "top5")}
        end = time.time()
        for images, target, _ in loader.epoch():
            meters["data_time"].update(time.time() - end)
            images, target = images.float().to(device), target.to(device)
            _, logits = _with_features(student, images)
            with torch.no_grad():
                features, answer = _with_features(teacher, images)
                features = [feature.detach() for feature in features]
            loss = 0.1 * F.cross_entropy(logits, target) + 0.9 * soft_loss(logits, answer)
            with torch.no_grad():
                hits = logits.topk(5, 1)[1].t().eq(target[None])
                top1, top5 = (hits[:k].reshape(-1).float().sum() * (100.0 / len(target)) for k in (1, 5))
            meters["loss"].update(loss.item(), len(target))
            meters["top1"].update(top1.item(), len(target))
            meters["top5"].update(top5.item(), len(target))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meters["batch_time"].update(time.time() - end)
            end = time.time()

    return run


def channels_last(pair: Pair) -> Pair:
    """Lay the weights out as ``stillroom distill`` does; the other loops leave that to their users."""
    teacher, student = (net.to(memory_format=torch.channels_last) for net in (pair.teacher, pair.student))
    return pair._replace(teacher=teacher, student=student)


def main() -> None:
    parser = rounds_parser("Time KD in our loop, in other packages and in a research-style loop.")
    parser.add_argument("--pair", choices=[name for name in PAIRS if name != "mlp"], default="resnet")
    arguments = parser.parse_args()
    device = environment(arguments)
    pair = make_pair(arguments.pair, device)
    batches = make_batches(8, shape=pair.shape, batch=arguments.batch, classes=pair.classes, device=device)
    loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
    sources = {
        BARE: lambda pair: bare_sum(pair, "kd", batches[0], fused=True),
        "ours": lambda pair: ours(distillation(pair, "kd", batches[0]), device),
        "ours, channels-last": lambda pair: ours(distillation(channels_last(pair), "kd", batches[0]), device),
        "plain loop": lambda pair: plain_kd(pair, fused=False),
        "CRD-benchmark style": lambda pair: crd_style(pair, device),
        "torchdistill": lambda pair: torchdistill(pair, device, eval_teacher=False),
        "torchdistill, teacher.eval() by the user": lambda pair: torchdistill(pair, device, eval_teacher=True),
        "KD_Lib": lambda pair: kd_lib(pair, device),
    }
    contenders: dict[str, Contender] = {}
    failures: dict[str, Exception] = {}
    for name, source in sources.items():
        try:
            contender = source(make_pair(arguments.pair, device))
            contender(loader)
        except Exception as error:  # whatever keeps a package from running, the table says so
            failures[name] = error
        else:
            contenders[name] = contender
    print(f"### KD, pair {arguments.pair}\n")
    print_table(compare(contenders, loader, rounds=arguments.rounds), baseline=BARE)
    for name, error in failures.items():
        print(f"{name} could not run: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
