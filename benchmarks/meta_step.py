"""What MMKD's meta step costs beyond the passes it cannot do without.

    python benchmarks/meta_step.py --pair toy --rounds 8

The required passes, written by hand for these networks and nothing else:

1. every teacher's forward pass, without graph;
2. two passes of the matching loss (student forward, aligners, weighted losses, backward with graph), each with its SGD
   step;
3. one pass of the cross-entropy after them (student forward, backward with graph), with its SGD step;
4. the cross-entropy of the student after that (forward), and one backward pass through all of the above to the weight
   networks: the second-order products.

Ours is ``MetaTask.meta_step``: the same through taps, method and ``look_ahead``, and Adam's step. The row of ordinary
passes is 1 to 3 without graphs of gradients, as in ordinary training: it computes no meta-gradient and shows what
second order costs.
"""

from __future__ import annotations

import copy

import torch
from _loops import LR, PAIRS, Pair, make_pair, sgd
from _rounds import Contender, TimedLoader, compare, environment, make_batches, print_table, rounds_parser
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from stillroom.data.batch import Batch
from stillroom.distillation.multi_teacher.mmkd import MMKD
from stillroom.distillation.multi_teacher.task import Master, MetaTask, build_method
from stillroom.models.taps import Tapped
from stillroom.training.teacher import LiveTeacher

REQUIRED = "required passes, by hand"
TARGETS = {"ours": 1.15}
TEMPERATURE, BETA, MOMENTUM, DECAY = 4.0, 100.0, 0.9, 5e-4


def answer(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    feature_map = net.forward_features(images)
    return feature_map, net.linear(feature_map.mean((2, 3)))


class ByHand(nn.Module):
    """Student, aligners and weight networks in one module, for maps of equal size."""

    def __init__(self, student: nn.Module, teachers: list[nn.Module], sample: Batch, classes: int) -> None:
        super().__init__()
        self.student = student
        with torch.no_grad():
            own = answer(student, sample.images)[0]
            widths = [answer(teacher, sample.images)[0].shape[1] for teacher in teachers]
        self.align = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own.shape[1], width, 1), nn.BatchNorm2d(width), nn.ReLU()) for width in widths
        )
        count = len(teachers)
        sizes = {"logits": classes * (count + 1), "maps": len(sample.target) * (count + 1)}
        self.weigh = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, size // 2), nn.ReLU(), nn.Linear(size // 2, count), nn.Softmax(1))
                for name, size in sizes.items()
            }
        )

    def forward(self, images: Tensor, target: Tensor, teachers: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        own_map, own_logits = answer(self.student, images)
        if teachers is None:
            return F.cross_entropy(own_logits, target)
        flat = [value.detach().flatten(1) for value in (*(feature_map for feature_map, _ in teachers), own_map)]
        by_maps = self.weigh["maps"](torch.cat([value @ value.T for value in flat], 1))
        by_logits = self.weigh["logits"](torch.cat([*(logits for _, logits in teachers), own_logits.detach()], 1))
        log_own = F.log_softmax(own_logits / TEMPERATURE, 1)
        kd, feature = [], []
        for (feature_map, logits), align in zip(teachers, self.align, strict=True):
            log_teacher = F.log_softmax(logits / TEMPERATURE, 1)
            kd.append(TEMPERATURE**2 * (log_teacher.exp() * (log_teacher - log_own)).sum(1))
            feature.append((align(own_map) - feature_map).square().flatten(1).mean(1))
        losses = by_logits * torch.stack(kd, 1) + BETA * by_maps * torch.stack(feature, 1)
        return losses.sum(1).mean()


def required(pair: Pair, count: int, sample: Batch) -> Contender:
    """Return the meta-gradient as short as it can be written for these networks."""
    teachers = [copy.deepcopy(pair.teacher).eval().requires_grad_(False) for _ in range(count)]
    hand = ByHand(pair.student, teachers, sample, pair.classes).to(sample.images.device).train()
    start = {name: value.detach() for name, value in hand.named_parameters() if not name.startswith("weigh")}
    momentum = {name: torch.zeros_like(value) for name, value in start.items()}

    def run(loader: TimedLoader) -> None:
        for images, target, _ in loader.epoch():
            with torch.no_grad():
                says = [answer(teacher, images) for teacher in teachers]
            buffers = {name: value.clone() for name, value in hand.named_buffers()}
            now = {name: value.detach().requires_grad_() for name, value in start.items()}
            velocity = momentum
            for teaching in (says, says, None):
                loss = functional_call(hand, {**now, **buffers}, (images, target, teaching))
                slopes = torch.autograd.grad(loss, list(now.values()), create_graph=True, materialize_grads=True)
                velocity = {
                    name: slope.add(now[name], alpha=DECAY).add(velocity[name], alpha=MOMENTUM)
                    for name, slope in zip(now, slopes, strict=True)
                }
                now = {name: value.add(velocity[name], alpha=-LR) for name, value in now.items()}
            loss = functional_call(hand, {**now, **buffers}, (images, target, None))
            torch.autograd.grad(loss, list(hand.weigh.parameters()))

    return run


def ordinary(pair: Pair, count: int, sample: Batch) -> Contender:
    """Return the three passes as ordinary training steps: no meta-gradient comes of them."""
    teachers = [copy.deepcopy(pair.teacher).eval().requires_grad_(False) for _ in range(count)]
    hand = ByHand(pair.student, teachers, sample, pair.classes).to(sample.images.device).train()
    hand.weigh.requires_grad_(False)

    def run(loader: TimedLoader) -> None:
        optimizer = sgd([parameter for parameter in hand.parameters() if parameter.requires_grad], fused=True)
        for images, target, _ in loader.epoch():
            with torch.no_grad():
                says = [answer(teacher, images) for teacher in teachers]
            for teaching in (says, says, None):
                optimizer.zero_grad(set_to_none=False)
                hand(images, target, teaching).backward()
                optimizer.step()

    return run


def ours(pair: Pair, count: int, sample: Batch) -> Contender:
    """Return our meta step."""
    method = MMKD(temperature=TEMPERATURE, beta=BETA, buffer_size=len(sample.target))
    masters = []
    for k in range(count):
        teacher = copy.deepcopy(pair.teacher)
        says = LiveTeacher(Tapped(teacher, teacher.tap_paths(), {"stages"})).to(sample.images.device)
        masters.append(Master(f"teacher {k}", says))
    student = Tapped(pair.student, pair.student.tap_paths(), {"stages"}).to(sample.images.device)
    task = MetaTask(
        student, masters, build_method(student, masters, method, sample, seed=0), sample, steps_per_epoch=1
    ).train()
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for parameter in trained:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def run(loader: TimedLoader) -> None:
        for batch in loader.epoch():
            task.meta_step(batch, optimizer)

    return run


def main() -> None:
    parser = rounds_parser("Time MMKD's meta step against the passes it cannot do without.")
    parser.add_argument("--pair", choices=[name for name in PAIRS if name != "mlp"], default="toy", help="networks")
    parser.add_argument("--teachers", type=int, default=3, help="how many teachers, all like the pair's")
    arguments = parser.parse_args()
    device = environment(arguments)
    pair = make_pair(arguments.pair, device)
    batches = make_batches(4, shape=pair.shape, batch=arguments.batch, classes=pair.classes, device=device)
    contenders = {
        name: make(make_pair(arguments.pair, device), arguments.teachers, batches[0])
        for name, make in ((REQUIRED, required), ("three ordinary passes, by hand", ordinary), ("ours", ours))
    }
    loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
    print(f"### meta step, pair {arguments.pair}, {arguments.teachers} teachers\n")
    print_table(compare(contenders, loader, rounds=arguments.rounds), baseline=REQUIRED, targets=TARGETS)


if __name__ == "__main__":
    main()
