"""Taps: what is read, where, and that nothing is left behind."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.models import zoo
from stillroom.models.signals import Signals, TapPaths
from stillroom.models.taps import Tapped, find_taps, user_taps

ALL = frozenset({"stages", "preact", "pooled"})


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.spare = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.act(self.body(self.stem(images))).mean((2, 3)))


PATHS = TapPaths(("stem", "act"), ("stem:input", "act:input"), classifier="fc")


def images(size: int = 8, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(one: Signals, other: Signals) -> None:
    flat = [[s.logits, *s.stages, *s.preact, *([] if s.pooled is None else [s.pooled])] for s in (one, other)]
    assert len(flat[0]) == len(flat[1])
    for a, b in zip(*flat, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_signals_are_the_tensors_the_network_computes() -> None:
    net, x = Toy(), images()
    signals = Tapped(net, PATHS, ALL)(x)
    stem = net.stem(x)
    body = net.body(stem)
    expected = Signals(net(x), (stem, body.relu()), (x, body), body.relu().mean((2, 3)))
    assert_same(signals, expected)


def test_only_the_signals_asked_for_are_returned() -> None:
    net = Toy()
    assert Tapped(net, PATHS, {"preact"})(images()).stages == ()
    pooled = Tapped(net, PATHS, {"pooled"})(images())
    assert pooled.stages == pooled.preact == ()
    assert pooled.pooled is not None


def test_nothing_asked_registers_no_hook() -> None:
    net = Toy()
    signals = Tapped(net, PATHS)(images())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert signals[1:] == ((), (), None)


def test_gradients_flow_through_the_taps() -> None:
    net = Toy()
    Tapped(net, PATHS, ALL)(images()).stages[0].sum().backward()
    assert net.stem.weight.grad is not None
    assert net.fc.weight.grad is None


def test_no_tensor_outlives_the_forward_pass() -> None:
    tapped = Tapped(Toy(), PATHS, ALL)
    with torch.no_grad():
        kept = weakref.ref(tapped(images()).stages[0])
    gc.collect()
    assert kept() is None


def test_calling_the_network_itself_catches_nothing() -> None:
    tapped = Tapped(Toy(), PATHS, ALL)
    tapped.model(images())
    assert tapped._sink.values is None


def test_a_failed_forward_pass_leaves_nothing_behind() -> None:
    tapped = Tapped(Toy(), PATHS, ALL)
    with pytest.raises(RuntimeError):
        tapped(images(channels=1))
    assert tapped._sink.values is None


def test_two_forward_passes_do_not_mix() -> None:
    tapped = Tapped(Toy(), PATHS, ALL)
    first, second = tapped(images()), tapped(images() + 1)
    assert_same(first, tapped(images()))
    assert not torch.equal(first.stages[0], second.stages[0])


def test_a_module_that_was_not_called_is_named() -> None:
    tapped = Tapped(Toy(), TapPaths(("stem", "spare")), {"stages"})
    with pytest.raises(InputError, match="'spare' stayed empty"):
        tapped(images())


def test_an_unknown_path_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no module 'bodi' to tap; did you mean 'body'\?"):
        Tapped(Toy(), TapPaths(("bodi",)), {"stages"})


@pytest.mark.parametrize(
    ("paths", "signals", "message"),
    [
        (PATHS, {"stage"}, "did you mean 'stages'"),
        (TapPaths(()), {"stages"}, "no stage is tapped"),
        (TapPaths(("stem",)), {"preact"}, "defines none"),
        (TapPaths(("stem",)), {"pooled"}, "no final linear layer"),
        (TapPaths(("stem", "act"), ("act:input",)), {"stages"}, "1 preact taps for 2 stages"),
    ],
)
def test_signals_the_paths_do_not_define_are_refused(paths: TapPaths, signals: set[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tapped(Toy(), paths, signals)


def test_a_tap_that_is_no_feature_map_is_refused() -> None:
    with pytest.raises(InputError, match="'fc' gives shape"):
        Tapped(Toy(), TapPaths(("fc",)), {"stages"}, sample=images())


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    class Pair(Toy):
        def forward(self, images: Tensor) -> Tensor:
            return (super().forward(images), 0)  # type: ignore[return-value]

    with pytest.raises(InputError, match="returns a tuple"):
        Tapped(Pair(), PATHS, ALL)(images())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_compiled_network_gives_the_eager_signals(mode: str) -> None:
    tapped = Tapped(Toy(), PATHS, ALL).train(mode == "train")
    compiled = torch.compile(tapped, fullgraph=True, backend="eager")
    expected = tapped(images())
    assert_same(compiled(images()), expected)
    assert_same(compiled(images()), expected)
    assert tapped._sink.values is None


def test_a_network_compiled_before_its_first_forward_pass_decides_its_layout() -> None:
    net = Tokens(prefix=1)
    tapped = Tapped(net, TapPaths(("blocks.0",)), {"stages"})
    compiled = torch.compile(tapped, fullgraph=True, backend="eager")
    stages = compiled(images()).stages
    assert stages[0].shape == (2, 6, 4, 4)
    assert_same(Tapped(net, TapPaths(("blocks.0",)), {"stages"})(images()), compiled(images()))


def test_a_compiled_training_step_gives_the_eager_gradients() -> None:
    def gradient(compiled: bool) -> Tensor:
        torch.manual_seed(0)
        tapped = Tapped(Toy(), PATHS, ALL)
        run = torch.compile(tapped, fullgraph=True, backend="eager") if compiled else tapped
        signals = run(images())
        (signals.logits.sum() + signals.stages[0].square().sum() + signals.preact[1].sum()).backward()
        assert tapped.model.stem.weight.grad is not None
        return tapped.model.stem.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=0, atol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_a_copy_is_tapped_like_the_original(duplicate) -> None:  # type: ignore[no-untyped-def]
    original = Tapped(Toy(), PATHS, ALL)
    other = duplicate(original)
    assert_same(other(images()), original(images()))


def test_a_deep_copy_reads_its_own_network() -> None:
    original = Tapped(Toy(), PATHS, ALL)
    before = original(images())
    other = copy.deepcopy(original)
    nn.init.zeros_(other.model.stem.weight)
    nn.init.zeros_(other.model.stem.bias)
    assert other(images()).stages[0].abs().sum() == 0
    assert_same(original(images()), before)


def test_taps_work_under_ddp(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        tapped = Tapped(Toy(), TapPaths(("stem", "act"), classifier="fc"), {"stages", "pooled"})
        expected = tapped(images())
        wrapped = nn.parallel.DistributedDataParallel(tapped, find_unused_parameters=True)
        signals = wrapped(images())
        assert isinstance(signals, Signals)
        assert_same(signals, expected)
        signals.stages[1].sum().backward()
        assert tapped.model.body.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


class Tokens(nn.Module):
    """A toy transformer: 4×4 patches as tokens [B, prefix + 16, 6]."""

    def __init__(self, prefix: int = 0) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(6)))
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.new_full((len(tokens), self.num_prefix_tokens, 6), 9.0), tokens], 1)
        return self.head(self.blocks(tokens).mean(1))


@pytest.mark.parametrize("prefix", [0, 1, 2, 9])
def test_tokens_become_maps_in_reading_order_without_their_prefix(prefix: int) -> None:
    net, x = Tokens(prefix), images()
    net.blocks[0] = nn.Identity()
    stage = Tapped(net, TapPaths(("blocks.0",)), {"stages"}, sample=x)(x).stages[0]
    torch.testing.assert_close(stage, net.embed(x), rtol=0, atol=0)


def test_tokens_of_oblong_images_become_oblong_maps() -> None:
    net = Tokens(1)
    net.blocks[0] = nn.Identity()
    x = torch.randn(2, 3, 4, 12)
    stage = Tapped(net, TapPaths(("blocks.0",)), {"stages"})(x).stages[0]
    torch.testing.assert_close(stage, net.embed(x), rtol=0, atol=0)


def test_channels_last_maps_are_turned_round() -> None:
    class ChannelsLast(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.mark = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            features = self.mark(self.body(self.stem(images)).permute(0, 2, 3, 1))
            return self.fc(features.mean((1, 2)))

    net, x = ChannelsLast(), images()
    stage = Tapped(net, TapPaths(("mark",)), {"stages"}, sample=x)(x).stages[0]
    torch.testing.assert_close(stage, net.body(net.stem(x)), rtol=0, atol=0)


def test_a_map_as_wide_as_deep_follows_the_other_taps() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(64, 2))

    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.same, self.other = nn.Identity(), nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            self.same(net[0](images).permute(0, 2, 3, 1))
            self.other(net[0](images)[:, :3].permute(0, 2, 3, 1))
            return self.net(images)

    x = images()
    stages = Tapped(Permuted(), TapPaths(("same", "other")), {"stages"}, sample=x)(x).stages
    torch.testing.assert_close(stages[0], net[0](x), rtol=0, atol=0)


def test_a_network_says_where_it_is_tapped() -> None:
    net = zoo.create("resnet8", num_classes=4, in_channels=1)
    assert find_taps(net, images(channels=1)) == net.tap_paths()
    signals = Tapped(net, net.tap_paths(), ALL)(images(channels=1))
    assert [tuple(s.shape[1:]) for s in signals.stages] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]


def test_tap_paths_of_another_type_are_refused() -> None:
    class Odd(Toy):
        def tap_paths(self) -> list[str]:
            return ["stem"]

    with pytest.raises(InputError, match="must return TapPaths, not list"):
        find_taps(Odd(), images())


TIMM = {
    "resnet18": (("layer1", "layer2", "layer3", "layer4"), "act1", "fc", [8, 4, 2, 1]),
    "resnet26d": (("layer1", "layer2", "layer3", "layer4"), "act1", "fc", [8, 4, 2, 1]),
    "convnext_atto": (("stages.0", "stages.1", "stages.2", "stages.3"), "stem", "head.fc", [8, 4, 2, 1]),
    "mobilenetv3_small_050": (("blocks.0", "blocks.1", "blocks.3", "blocks.5"), "bn1", "classifier", [8, 4, 2, 1]),
    "densenet121": (
        tuple(f"features.{name}" for name in ("denseblock1", "denseblock2", "denseblock3", "norm5")),
        "features.norm0",
        "classifier",
        [8, 4, 2, 1],
    ),
    "efficientnet_b0": (
        ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"),
        "bn1",
        "classifier",
        [16, 8, 4, 2, 1],
    ),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_pyramids_are_tapped_once_per_resolution(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=3).eval()
    stages, stem, classifier, sides = TIMM[name]
    paths = find_taps(net, images(32, 1))
    assert paths == TapPaths(stages, (), classifier, stem)
    signals = Tapped(net, paths, {"stages", "pooled"})(images(32, 1))
    assert [stage.shape[2:] for stage in signals.stages] == [(side, side) for side in sides]
    torch.testing.assert_close(net.get_submodule(classifier)(signals.pooled), signals.logits)


TORCHVISION = {
    "resnet18": (("layer1", "layer2", "layer3", "layer4"), "relu", "fc"),
    "vgg11_bn": (("features.6", "features.13", "features.20", "features.27"), "features.2", "classifier.6"),
    "mobilenet_v3_small": (("features.1", "features.3", "features.8", "features.12"), "features.0", "classifier.3"),
    "convnext_tiny": (("features.1", "features.3", "features.5", "features.7"), "features.0", "classifier.2"),
    "squeezenet1_1": (("features.4", "features.7", "features.12"), "features.1", None),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_are_tapped_once_per_resolution(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    stages, stem, classifier = TORCHVISION[name]
    net = models.get_model(name, num_classes=3)
    assert find_taps(net, images(64, 1)) == TapPaths(stages, (), classifier, stem)


def test_transformers_are_tapped_at_evenly_spaced_blocks() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=3).eval()
    paths = find_taps(net, images(32, 1))
    assert paths.stages == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
    assert paths.classifier == "head"
    tapped = Tapped(net, paths, {"stages", "pooled"}, sample=images(32, 1))
    signals = tapped(images(32))
    assert [tuple(s.shape) for s in signals.stages] == [(2, 192, 4, 4)] * 4
    tokens = []
    handle = net.blocks[2].register_forward_hook(lambda _, __, out: tokens.append(out))
    net(images(32))
    handle.remove()
    torch.testing.assert_close(signals.stages[0][0, :, 1, 2], tokens[0][0, 1 + 1 * 4 + 2], rtol=0, atol=0)


def test_swin_maps_arrive_with_channels_first() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=3, depths=(1, 1, 1, 1)).eval()
    paths = find_taps(net, images(32, 1))
    tapped = Tapped(net, paths, {"stages"}, sample=images(32, 1))
    assert [tuple(s.shape[1:]) for s in tapped(images(32)).stages] == [
        (96, 8, 8),
        (192, 4, 4),
        (384, 2, 2),
        (768, 1, 1),
    ]


def test_a_short_transformer_of_ones_own_is_tapped_at_its_blocks() -> None:
    assert find_taps(Tokens(1), images()).stages == ("blocks.1", "blocks.2", "blocks.4", "blocks.5")


def test_a_logit_that_is_an_average_of_two_heads_has_no_classifier() -> None:
    class TwoHeads(Toy):
        def forward(self, images: Tensor) -> Tensor:
            pooled = self.act(self.body(self.stem(images))).mean((2, 3))
            return (self.fc(pooled) + self.fc(pooled.flip(1))) / 2

    assert find_taps(TwoHeads(), images()).classifier is None


def test_looking_for_taps_leaves_the_network_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).train()
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    find_taps(net, images())
    assert [module.training for module in net] == [True, False, True, True, True]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_a_network_without_feature_maps_asks_for_names() -> None:
    with pytest.raises(InputError, match="no feature map found"):
        find_taps(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images())


def test_users_name_their_own_taps() -> None:
    paths = user_taps(Toy(), images(), stages=["stem", "body"], preact=["stem", "act:input"])
    assert paths == TapPaths(("stem", "body"), ("stem", "act:input"), classifier="fc")


@pytest.mark.parametrize(("stages", "message"), [(["fc"], "not a feature map"), (["stemm"], "did you mean 'stem'")])
def test_wrong_names_of_users_are_refused(stages: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        user_taps(Toy(), images(), stages=stages)


def test_a_tap_that_a_later_layer_overwrites_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(InputError, match="'1' is overwritten in place"):
        user_taps(net, images(), stages=["1"])


@pytest.mark.parametrize("duplicate", [lambda tapped: tapped, copy.deepcopy])
def test_a_released_network_has_no_hooks_left(duplicate) -> None:  # type: ignore[no-untyped-def]
    original = Tapped(Toy(), PATHS, ALL)
    tapped = duplicate(original)
    net = tapped.release()
    assert net is tapped.model
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    if tapped is not original:
        assert original(images()).pooled is not None
