"""What a step of OKDDip with branch peers costs beyond its networks, and whether branches gain from running as one.

    python benchmarks/online_step.py --network resnet32 resnet20

The bare sum is written by hand: one shared trunk, as many branches as members, cross-entropy on every one of them, the
backward pass and torch's fused SGD. One more row does the same with all branches as one batched computation, by
``torch.func.vmap`` over their stacked weights, which runs their convolutions as grouped ones; a second table compares
the two for the branches alone, without trunk and optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from _loops import RECIPE, ours, sgd
from _rounds import Contender, TimedLoader, compare, environment, make_batches, print_table, rounds_parser
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from stillroom.data.batch import Batch
from stillroom.distillation.networks import Network
from stillroom.distillation.online.okddip import OKDDip
from stillroom.distillation.online.task import OnlineTask
from stillroom.models import zoo
from stillroom.models.split import Split, split
from stillroom.models.store import ModelCard

CUT = "layer2"
CLASSES = 100
BARE = "bare sum"


def networks(name: str, members: int, device: torch.device) -> list[nn.Module]:
    """Create the members, every call with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [zoo.create(name, num_classes=CLASSES) for _ in range(members)]
    return [network.to(device, memory_format=torch.channels_last) for network in made]


def halves(name: str, members: int, sample: Batch) -> list[Split]:
    """Cut all members in two."""
    return [split(network.train(), CUT, sample.images[:2]) for network in networks(name, members, sample.images.device)]


def plain_loop(trunk: nn.Module, trained: Sequence[Tensor], answers: Callable[[Tensor], list[Tensor]]) -> Contender:
    """Return the hand-written step around some way to run the branches."""

    def run(loader: TimedLoader) -> None:
        optimizer = sgd(trained, fused=True)  # type: ignore[arg-type]
        for images, target, _ in loader.epoch():
            terms = [F.cross_entropy(logits, target) for logits in answers(trunk(images))]
            sum(terms[1:], start=terms[0]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def one_by_one(name: str, members: int, sample: Batch) -> Contender:
    """Return the bare sum."""
    parts = halves(name, members, sample)
    trunk, branches = parts[0].trunk.train(), [part.branch.train() for part in parts]
    trained = [*trunk.parameters(), *(value for branch in branches for value in branch.parameters())]
    return plain_loop(trunk, trained, lambda features: [branch(features) for branch in branches])


def stacked(states: Sequence[dict[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of several modules as one."""
    for path in states[0]:
        yield path, torch.stack([state[path].detach() for state in states])


def batched(name: str, members: int, sample: Batch) -> tuple[nn.Module, list[Tensor], Callable[[Tensor], list[Tensor]]]:
    """Return the trunk, what is trained, and the branches as one computation."""
    parts = halves(name, members, sample)
    trunk, branches = parts[0].trunk.train(), [part.branch.train() for part in parts]
    for branch in branches:
        for module in branch.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = None  # vmap cannot count in place; the statistics are kept
    # Traced parts have classes of their own, which torch.func.stack_module_state refuses.
    leaves = {path: value.requires_grad_() for path, value in stacked([dict(b.named_parameters()) for b in branches])}
    buffers = dict(stacked([dict(b.named_buffers()) for b in branches]))
    model = branches[0]

    def one(weights: dict[str, Tensor], statistics: dict[str, Tensor], features: Tensor) -> Tensor:
        answer: Tensor = functional_call(model, (weights, statistics), (features,))
        return answer

    run = vmap(one, in_dims=(0, 0, None), randomness="different")
    return trunk, [*trunk.parameters(), *leaves.values()], lambda features: list(run(leaves, buffers, features))


def branches_alone(answers: Callable[[Tensor], list[Tensor]], features: Tensor) -> Contender:
    """Return forward and backward pass of all branches on a fixed map."""

    def run(loader: TimedLoader) -> None:
        for _, target, _ in loader.epoch():
            shared = features.detach().requires_grad_()
            terms = [F.cross_entropy(logits, target) for logits in answers(shared)]
            sum(terms[1:], start=terms[0]).backward()

    return run


def okddip(name: str, members: int, sample: Batch, device: torch.device) -> Contender:
    """Return our loop with OKDDip at full weight."""
    card = ModelCard(
        architecture=name,
        num_classes=CLASSES,
        classes=tuple(map(str, range(CLASSES))),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        input_shape=(3, 32, 32),
    )
    made = [Network(network, network.tap_paths(), card) for network in networks(name, members, device)]  # type: ignore[operator]
    task = OnlineTask.build(made, OKDDip(rampup=0), sample, branch="auto", epochs=RECIPE.epochs, seed=0)
    return ours(task, device)


def main() -> None:
    parser = rounds_parser("Time a step of OKDDip against the bare sum of its networks, and batched branches.")
    parser.add_argument("--network", nargs="+", default=["resnet32", "resnet20"], help="ResNets of three stages")
    parser.add_argument("--peers", type=int, default=4, help="members, the leader included")
    parser.set_defaults(batch=128, rounds=8, steps=2)
    arguments = parser.parse_args()
    device = environment(arguments)
    batches = make_batches(4, shape=(3, 32, 32), batch=arguments.batch, classes=CLASSES, device=device)
    for name in arguments.network:
        sample, members = batches[0], arguments.peers
        trunk, trained, answers = batched(name, members, sample)
        whole = {
            BARE: one_by_one(name, members, sample),
            "ours": okddip(name, members, sample, device),
            "bare sum, branches by vmap": plain_loop(trunk, trained, answers),
        }
        loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
        print(f"### {name}, {members} branches behind {CUT}\n")
        print_table(compare(whole, loader, rounds=arguments.rounds), baseline=BARE, targets={"ours": 1.10})

        parts = halves(name, members, sample)
        branches = [part.branch.train() for part in parts]
        with torch.no_grad():
            features = parts[0].trunk.eval()(sample.images)
        alone = {
            "one by one": branches_alone(lambda shared, own=branches: [branch(shared) for branch in own], features),  # type: ignore[misc]
            "vmap": branches_alone(batched(name, members, sample)[2], features),
        }
        print(f"### {name}, the {members} branches alone\n")
        print_table(compare(alone, loader, rounds=arguments.rounds), baseline="one by one")


if __name__ == "__main__":
    main()
