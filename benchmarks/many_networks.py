"""Many small networks trained at once: one after the other, by torch.func.vmap, by grouped convolutions.

    python benchmarks/many_networks.py --networks 4 --batch 128 --rounds 8

A step is one update of every network (forward, backward, SGD), each on its own images. The grouped rows are what the
data set of pairs of knowledge translation is made with; the target holds them to half of the time of the loop.
"""

from __future__ import annotations

import copy

import torch
from _rounds import Contender, TimedLoader, compare, environment, make_batches, print_table, rounds_parser
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from stillroom.distillation.translation.blocks import BlockNet
from stillroom.distillation.translation.many import sgd, stack, train

LOOP = "one after the other"
LR, MOMENTUM = 0.01, 0.9


def one_by_one(networks: list[BlockNet]) -> Contender:
    optimizers = [torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=True) for net in networks]

    def run(loader: TimedLoader) -> None:
        for batch in loader.epoch():
            for i, (net, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
                F.cross_entropy(net(batch.images[:, i : i + 1]), batch.target).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return run


def by_vmap(networks: list[BlockNet]) -> Contender:
    parameters, buffers = stack_module_state(networks)  # type: ignore[arg-type]
    base = copy.deepcopy(networks[0])
    optimizer = torch.optim.SGD(parameters.values(), lr=LR, momentum=MOMENTUM, fused=True)

    def loss(own: dict[str, Tensor], statistics: dict[str, Tensor], images: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, own | statistics, (images,)), target)

    def run(loader: TimedLoader) -> None:
        for batch in loader.epoch():
            images = batch.images.transpose(0, 1)[:, :, None]
            vmap(loss, in_dims=(0, 0, 0, None))(parameters, buffers, images, batch.target).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def grouped(networks: list[BlockNet], memory_format: torch.memory_format) -> Contender:
    state = stack(networks)
    optimizer = sgd(state, [name for name in state if "running" not in name], lr=LR, momentum=MOMENTUM)

    def run(loader: TimedLoader) -> None:
        train(
            state,
            optimizer,
            (
                (batch.images.contiguous(memory_format=memory_format), batch.target.expand(len(networks), -1))
                for batch in loader.epoch()
            ),
        )

    return run


def main() -> None:
    parser = rounds_parser(__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=4, help="networks trained at once")
    parser.add_argument("--side", type=int, default=28, help="side of the images")
    parser.set_defaults(batch=128, rounds=8)
    arguments = parser.parse_args()
    device = environment(arguments)
    count, side = arguments.networks, arguments.side
    torch.manual_seed(0)
    networks = [BlockNet("large", shape=(1, side, side)).to(device) for _ in range(count)]
    batches = make_batches(2, shape=(count, side, side), batch=arguments.batch, classes=10, device=device)
    loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
    contenders = {
        LOOP: one_by_one(copy.deepcopy(networks)),
        "torch.func.vmap": by_vmap(copy.deepcopy(networks)),
        "grouped": grouped(networks, torch.contiguous_format),
        "grouped, channels last (ours)": grouped(networks, torch.channels_last),
    }
    times = compare(contenders, loader, rounds=arguments.rounds)
    print_table(times, baseline=LOOP, targets={"grouped, channels last (ours)": 0.5})


if __name__ == "__main__":
    main()
