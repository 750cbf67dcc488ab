"""The mathematics of synthesis: what holds whatever the numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stillroom.data.augment import crop
from stillroom.distillation.data_free._networks import fixed
from stillroom.distillation.data_free.align import AlignHead
from stillroom.distillation.data_free.auxiliary import Auxiliary
from stillroom.distillation.data_free.bn_statistics import BNStatistics, bn_statistics_loss
from stillroom.distillation.data_free.cmi import FeatureMemory, ProjectionHead, contrastive_loss
from stillroom.distillation.data_free.dafl import dafl_loss
from stillroom.distillation.data_free.deepinversion import js_divergence, total_variation
from stillroom.distillation.data_free.generator import Generator, reinitialise
from stillroom.distillation.data_free.head import AuxiliaryHead
from stillroom.distillation.data_free.inversion import adversarial_loss, optimise, synthesis_loss
from stillroom.distillation.data_free.rotation import rotation_batch
from stillroom.distillation.data_free.views import Views, shift, zoom
from stillroom.errors import InputError
from stillroom.models.signals import Signals, TapPaths
from stillroom.models.taps import Tapped

SEEDS = st.integers(0, 10_000)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_net(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).double()
    net(random(16, channels, 8, 8))  # moves the running statistics
    return net.eval()


class TestBNStatistics:
    @given(SEEDS, st.integers(1, 4), st.booleans())
    @settings(max_examples=20, deadline=None)
    def test_value_and_gradient_are_those_of_the_written_formula(self, seed: int, batch: int, last: bool) -> None:
        x = random(batch, 3, 4, 5, seed=seed) * 3 + 1
        x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
        mean, variance = random(3, seed=seed + 1), random(3, seed=seed + 2).abs()
        flat = x.transpose(0, 1).flatten(1)
        written = (variance - flat.var(1, correction=0)).norm() + (mean - flat.mean(1)).norm()
        loss = bn_statistics_loss(x, mean, variance)
        torch.testing.assert_close(loss, written)
        torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(written, x))

    def test_the_gradient_is_zero_where_the_statistics_match_exactly(self) -> None:
        x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2).clone().requires_grad_()
        loss = bn_statistics_loss(x, torch.zeros(3), torch.ones(3))
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, x)[0].any()

    def test_a_network_without_batch_norm_is_refused_and_the_method_named(self) -> None:
        with pytest.raises(InputError, match=r"^cmi makes images from the statistics .* Linear has none"):
            BNStatistics(nn.Linear(2, 2), "cmi")

    def test_all_layers_count_and_the_last_forward_pass_is_meant(self) -> None:
        net, first, second = small_net(), random(2, 3, 8, 8), random(3, 3, 8, 8, seed=1)
        with BNStatistics(net) as statistics:
            net(first)
            net(second)
            loss, features = statistics.loss(), statistics.features()
        inner = net[0](second), net[3](net[:3](second))
        expected = [bn_statistics_loss(x, net[i].running_mean, net[i].running_var) for x, i in zip(inner, (1, 4))]  # noqa: B905
        torch.testing.assert_close(loss, sum(expected, torch.zeros(())).double())
        torch.testing.assert_close(features, torch.cat([x.mean((2, 3)) for x in inner], dim=1))

    def test_hooks_are_gone_afterwards_and_nothing_is_kept(self) -> None:
        net = small_net()
        with BNStatistics(net) as statistics:
            net(random(1, 3, 8, 8))
        net(random(1, 3, 8, 8))
        with pytest.raises(InputError, match="after a forward pass"):
            statistics.loss()


class TestRotation:
    def test_turning_further_ends_where_it_began(self) -> None:
        images = random(2, 3, 4, 4)
        turned, target = rotation_batch(images, torch.tensor([1, 4]))
        for k in range(4):
            assert torch.equal(torch.rot90(turned[k::4], -k, (2, 3)), images)
        assert target is not None
        assert target.tolist() == [4, 5, 6, 7, 16, 17, 18, 19]

    def test_oblong_images_are_refused(self) -> None:
        with pytest.raises(InputError, match="only square images"):
            rotation_batch(torch.zeros(1, 1, 4, 6))


class TestGenerator:
    @pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3)])
    def test_images_have_the_size_asked_for_and_lie_in_0_1(self, size: int, channels: int) -> None:
        images = Generator(latent=4, size=size, channels=channels, width=2)(torch.randn(2, 4))
        assert images.shape == (2, channels, size, size)
        assert bool(((images >= 0) & (images <= 1)).all())

    @pytest.mark.parametrize("size", [2, 30])
    def test_other_sizes_are_refused(self, size: int) -> None:
        with pytest.raises(InputError, match="divisible by 4"):
            Generator(latent=4, size=size, channels=1)

    def test_reinitialising_forgets_everything_and_depends_on_the_source_alone(self) -> None:
        nets = [Generator(latent=4, size=8, channels=1, width=8) for _ in range(2)]
        nets[1](torch.randn(4, 4))  # other running statistics
        for net in nets:
            reinitialise(net, torch.Generator().manual_seed(5))
        for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert 0.015 < nets[0].l1[0].weight.std().item() < 0.025
        assert abs(nets[0].conv_blocks[0].weight.mean().item() - 1) < 0.02
        assert not nets[0].l1[0].bias.any()


class TestHead:
    def test_the_loss_of_normalised_outputs_stays_near_the_logarithm_of_the_classes(self) -> None:
        head = AuxiliaryHead(6, 10)
        loss = nn.functional.cross_entropy(head(100 * torch.randn(8, 6)), torch.arange(8))
        assert abs(loss.item() - torch.tensor(40.0).log().item()) < 1.1

    def test_without_normalisation_outputs_scale(self) -> None:
        head = AuxiliaryHead(6, 10, normalize=False)
        assert head(torch.full((1, 6), 1e3)).norm() > 10

    def test_its_step_moves_nothing_of_the_student(self) -> None:
        student = Tapped(small_net().train(), TapPaths(("5",), classifier="8"), {"pooled"})
        before = copy.deepcopy(student.state_dict())
        auxiliary = Auxiliary(AuxiliaryHead(6, 5).double())
        head = copy.deepcopy(auxiliary.head.state_dict())
        auxiliary.step(student, random(2, 3, 8, 8), torch.tensor([0, 3]))
        assert student.training
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        assert all(parameter.grad is None for parameter in student.parameters())
        assert any(not torch.equal(value, head[name]) for name, value in auxiliary.head.state_dict().items())

    def test_a_restart_forgets_the_momentum(self) -> None:
        student = Tapped(small_net(), TapPaths(("5",), classifier="8"), {"pooled"})
        used, fresh = (Auxiliary(AuxiliaryHead(6, 5).double()) for _ in range(2))
        used.step(student, random(2, 3, 8, 8), torch.tensor([0, 3]))
        for auxiliary in (used, fresh):
            auxiliary.restart(torch.Generator().manual_seed(1))
            auxiliary.step(student, random(2, 3, 8, 8), torch.tensor([0, 3]))
        for a, b in zip(used.head.parameters(), fresh.head.parameters(), strict=True):
            assert torch.equal(a, b)


class TestLosses:
    @given(SEEDS)
    @settings(max_examples=10, deadline=None)
    def test_divergences_vanish_between_equal_networks_and_only_there(self, seed: int) -> None:
        a, b = random(3, 5, seed=seed), random(3, 5, seed=seed + 1)
        assert adversarial_loss(a, a + 3).item() == pytest.approx(0, abs=1e-12)
        assert adversarial_loss(a, b).item() < 0
        assert js_divergence(a, a).item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(js_divergence(a, b), js_divergence(b, a))

    def test_samples_on_which_student_and_teacher_disagree_can_be_left_out(self) -> None:
        student, teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        alone = adversarial_loss(student[:1], teacher[:1])
        torch.testing.assert_close(adversarial_loss(student, teacher, only_agreeing=True), alone / 2)

    def test_nothing_is_detached_between_images_and_terms(self) -> None:
        net, images = small_net(), random(2, 3, 4, 4)
        target, head = torch.tensor([0, 1]), AuxiliaryHead(6, 5).double()
        student = Tapped(small_net(), TapPaths(("5",), classifier="8"), {"pooled"})

        def loss(images: Tensor, **weights: float) -> Tensor:
            with BNStatistics(net) as statistics:
                return synthesis_loss(images, target, net, statistics, student, head, **weights)["loss"]

        for weights in ({"bn": 1.0, "oh": 0.0}, {"bn": 0.0, "oh": 1.0}, {"csd": 1.0}, {"adv": 1.0}):
            assert torch.autograd.gradcheck(lambda x, w=weights: loss(x, **w), images.clone().requires_grad_())

    @given(SEEDS)
    @settings(max_examples=10, deadline=None)
    def test_total_variation_does_not_care_for_reflections(self, seed: int) -> None:
        images = random(2, 1, 5, 5, seed=seed)
        for other in (images.mT, images.flip(-1), images.flip(-2), 7 + images):
            torch.testing.assert_close(total_variation(other), total_variation(images))

    def test_dafl_wants_sure_answers_evenly_over_the_classes(self) -> None:
        features = torch.zeros(4, 2)
        even = dafl_loss(10 * torch.eye(4), features)["loss"]
        for worse in (torch.zeros(4, 4), 10 * torch.eye(4)[:1].expand(4, 4)):
            assert even < dafl_loss(worse, features)["loss"]
        assert dafl_loss(10 * torch.eye(4), features + 1)["loss"] < even

    def test_the_align_head_reaches_the_teachers_shape(self) -> None:
        for side in (4, 8, 16):
            assert AlignHead(3, 5)(torch.randn(2, 3, 8, 8), side).shape == (2, 5, side, side)


class TestContrast:
    def test_an_image_is_told_from_others_by_its_own_two_views(self) -> None:
        features = random(4, 3)
        own = contrastive_loss(nn.Identity(), features, features, temperature=0.1)
        mixed = contrastive_loss(nn.Identity(), features, features.roll(1, 0), temperature=0.1)
        assert own < mixed

    def test_the_whole_view_is_a_constant(self) -> None:
        head, local, whole = ProjectionHead(3, 2).double(), random(4, 3).requires_grad_(), random(4, 3, seed=1)
        whole.requires_grad_()
        loss = contrastive_loss(head, local, whole, random(2, 6))
        towards = torch.autograd.grad(loss, (local, whole), allow_unused=True)
        assert towards[0].abs().sum() > 0
        assert towards[1] is None

    @given(st.integers(1, 7), st.lists(st.integers(0, 9), max_size=6))
    @settings(max_examples=40, deadline=None)
    def test_the_ring_holds_the_newest_rows(self, size: int, batches: list[int]) -> None:
        ring, newest = FeatureMemory(torch.full((size, 1), -1.0)), 0
        for count in batches:
            ring.add(torch.arange(newest, newest + count, dtype=torch.float32)[:, None])
            newest += count
        expected = list(range(max(0, newest - size), newest))
        assert len(ring) == len(expected)
        drawn = ring.draw(size + 3, torch.Generator().manual_seed(0))
        assert sorted(drawn.flatten().tolist()) == expected


class TestViews:
    @given(SEEDS)
    @settings(max_examples=10, deadline=None)
    def test_a_shift_is_a_crop_of_the_padded_image(self, seed: int) -> None:
        images = random(3, 2, 6, 6, seed=seed)
        top, left = torch.randint(5, (2, 3), generator=torch.Generator().manual_seed(seed))
        cropped = crop(nn.functional.pad(images, (2,) * 4), torch.arange(3), top, left, (6, 6))
        assert torch.equal(shift(images, 2 - top, 2 - left), cropped)

    def test_a_window_of_the_whole_image_is_the_image(self) -> None:
        images, whole = random(2, 1, 6, 6), torch.ones(2, dtype=torch.float64)
        torch.testing.assert_close(zoom(images, 0 * whole, whole, whole), images)

    def test_a_window_lies_where_it_was_asked_for(self) -> None:
        images = torch.zeros(1, 1, 8, 8)
        images[..., :4, 4:] = 1.0  # the upper right quarter
        zoomed = zoom(images, torch.zeros(1), torch.ones(1), torch.full((1,), 0.5))
        assert zoomed[..., 1:-1, 1:-1].min() == 1.0

    @pytest.mark.parametrize(("augment", "mirrors"), [("crop-flip", True), ("crop", False), ("none", False)])
    def test_characters_are_never_mirrored(self, augment: str, mirrors: bool) -> None:
        views = Views((0.5,), (0.25,), augment)  # type: ignore[arg-type]
        left = torch.zeros(64, 1, 8, 8)
        left[..., 0:2] = 1.0
        generator = torch.Generator().manual_seed(0)
        for seen in (views.random(left, generator), views.zoomed(left, generator)):
            darker = seen[..., 4:].mean((1, 2, 3)) - seen[..., :4].mean((1, 2, 3))
            assert bool((darker > 0).any()) is mirrors
        assert views.normalise(torch.full((1, 1, 1, 1), 0.75)).item() == 1.0
        torch.testing.assert_close(views.denormalise(views.normalise(left)), left)


def test_the_best_iterate_is_kept_and_not_the_last() -> None:
    x = torch.zeros(1, requires_grad=True)
    values = iter([3.0, 1.0, 2.0])

    def objective(images: Tensor) -> dict[str, Tensor]:
        return {"loss": images.sum() * 0 + next(values), "at": images.detach() * 1}

    def move() -> None:
        with torch.no_grad():
            x.add_(1)

    best, told = optimise(lambda: x, objective, torch.optim.SGD([x], lr=0.1), 3, after=move)
    assert best.tolist() == told["at"].tolist() == [1.0]
    assert told["loss"].item() == 1.0
    assert x.item() == 3.0


def test_networks_are_fixed_for_a_while_only() -> None:
    net = small_net().train()
    net[3].requires_grad_(False)
    with fixed(net):
        assert not net.training
        images = random(2, 3, 8, 8).requires_grad_()
        Signals(net(images)).logits.sum().backward()
        assert images.grad is not None
        assert all(parameter.grad is None for parameter in net.parameters())
    assert net[1].training
    assert [parameter.requires_grad for parameter in net.parameters()] == [True] * 3 + [False] + [True] * 4
