"""What holds for single methods among those that match feature maps, and of SRRL."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.method_case import MethodCase
from stillroom.distillation.offline._align import pool_to
from stillroom.distillation.offline._method import DryRun, Method
from stillroom.distillation.offline.at import AT, spatial_attention
from stillroom.distillation.offline.dskd import DSKD, AuxiliaryBranch, allocate
from stillroom.distillation.offline.fitnet import FitNet, FitNetRegressor
from stillroom.distillation.offline.reviewkd import ReviewKD, hcl_loss
from stillroom.distillation.offline.semckd import SemCKD, SemCKDLoss
from stillroom.distillation.offline.simkd import SimKD
from stillroom.distillation.offline.srrl import SRRL
from stillroom.distillation.offline.vid import VID, VIDLoss, vid_loss
from stillroom.errors import InputError
from stillroom.models import zoo
from stillroom.models.signals import Signals
from stillroom.models.taps import Tapped, find_taps


class Toy(MethodCase):
    """The contract's inputs for one method, without its checks (the name keeps it from being collected)."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def make(self) -> Method:
        return self.method


def sample(method: Method) -> tuple[Toy, DryRun]:
    toy = Toy(method)
    return toy, toy.dry_run()


MAP_METHODS = [SimKD, SemCKD, DSKD, FitNet, AT, VID, ReviewKD]


@pytest.mark.parametrize("kind", MAP_METHODS)
@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_missing_maps_are_refused(kind: type[Method], owner: str) -> None:
    _, dry_run = sample(kind())
    empty = getattr(dry_run, owner)._replace(stages=())
    with pytest.raises(InputError, match=f"the {owner} gives none"):
        kind().build(replace(dry_run, **{owner: empty}))


@pytest.mark.parametrize("kind", MAP_METHODS)
def test_maps_that_are_not_square_are_refused(kind: type[Method]) -> None:
    _, dry_run = sample(kind())
    wide = dry_run.student._replace(stages=tuple(x[..., :1, :] for x in dry_run.student.stages))
    with pytest.raises(InputError, match="square"):
        kind().build(replace(dry_run, student=wide))


@pytest.mark.parametrize("kind", [SRRL, ReviewKD])
def test_a_missing_pooled_vector_is_refused(kind: type[Method]) -> None:
    _, dry_run = sample(kind())
    with pytest.raises(InputError, match="final linear layer"):
        kind().build(replace(dry_run, teacher=dry_run.teacher._replace(pooled=None)))


@pytest.mark.parametrize("kind", [SimKD, SRRL])
def test_a_teacher_without_a_linear_classifier_is_refused(kind: type[Method]) -> None:
    _, dry_run = sample(kind())
    with pytest.raises(InputError, match="no final linear layer"):
        kind().build(replace(dry_run, teacher_classifier=None))


@pytest.mark.parametrize("kind", [AT, VID, ReviewKD])
def test_stages_without_a_partner_are_announced(kind: type[Method]) -> None:
    toy, dry_run = sample(kind())
    teacher = dry_run.teacher._replace(stages=dry_run.teacher.stages[1:], preact=dry_run.teacher.preact[1:])
    method = kind()
    with pytest.warns(UserWarning, match="the student has 3 and the teacher 2"):
        method.build(replace(dry_run, teacher=teacher))
    loss = method(dry_run.student, teacher, toy.inputs().batch)["loss"]
    assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", [AT, VID, ReviewKD])
def test_equal_depths_are_built_without_a_word(kind: type[Method]) -> None:
    _, dry_run = sample(kind())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind().build(dry_run)


def test_simkd_refuses_a_teacher_with_a_layer_between_map_and_pooling() -> None:
    _, dry_run = sample(SimKD())
    torch.manual_seed(0)
    maps = dry_run.teacher.stages
    signed = torch.randn_like(maps[-1])  # a pre-activation network: the classifier sees ReLU(map)
    assert dry_run.teacher_classifier is not None
    logits = dry_run.teacher_classifier(signed.relu().mean((2, 3)))
    with pytest.raises(InputError, match=r"WRN.*MobileNetV2.*ShuffleNetV2"):
        SimKD().build(replace(dry_run, teacher=Signals(logits=logits, stages=(*maps[:-1], signed))))


def test_simkd_refuses_a_classifier_of_another_width() -> None:
    _, dry_run = sample(SimKD())
    with pytest.raises(InputError, match="the map has 64 channels, the classifier takes 128"):
        SimKD().build(replace(dry_run, teacher_classifier=nn.Linear(128, 10)))


def test_simkd_refuses_a_teacher_map_below_zero() -> None:
    _, dry_run = sample(SimKD())
    shifted = dry_run.teacher.stages[-1] - 1
    assert dry_run.teacher_classifier is not None
    logits = dry_run.teacher_classifier(shifted.mean((2, 3)))
    with pytest.raises(InputError, match="negative"):
        SimKD().build(replace(dry_run, teacher=Signals(logits=logits, stages=(shifted,))))


def test_simkd_takes_a_teacher_in_half_precision() -> None:
    _, dry_run = sample(SimKD())
    half = Signals(logits=dry_run.teacher.logits.bfloat16(), stages=tuple(x.bfloat16() for x in dry_run.teacher.stages))
    method = SimKD()
    method.build(replace(dry_run, teacher=half))
    assert method.classifier.weight.dtype is torch.float32


def test_simkd_answers_through_projector_and_the_teachers_classifier() -> None:
    toy, dry_run = sample(SimKD())
    method = SimKD()
    method.build(dry_run)
    method.eval()
    inputs = toy.inputs()
    projector, classifier = method.projector, method.classifier
    assert dry_run.teacher_classifier is not None
    expected = F.linear(
        projector(inputs.student.stages[-1]).mean((2, 3)),
        dry_run.teacher_classifier.weight,
        dry_run.teacher_classifier.bias,
    )
    torch.testing.assert_close(method.predict(inputs.student), expected)
    torch.testing.assert_close(method(inputs.student, inputs.teacher, inputs.batch)["output"], expected)
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_simkd_pools_a_larger_student_map_when_deployed_too() -> None:
    _, dry_run = sample(SimKD())
    large = dry_run.student._replace(stages=(torch.rand(8, 32, 6, 6),))
    method = SimKD()
    method.build(replace(dry_run, student=large))
    method.eval()
    expected = method.classifier(method.projector(F.adaptive_avg_pool2d(large.stages[-1], 2)).mean((2, 3)))
    torch.testing.assert_close(method.predict(large), expected)


def zoo_teacher(name: str) -> DryRun:
    torch.manual_seed(0)
    network = zoo.create(name, num_classes=10).eval()
    # Trained statistics: without them some layers between map and pooling are the identity.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    images = torch.randn(2, 3, 32, 32)
    paths = find_taps(network, images)
    assert paths.classifier is not None
    with torch.no_grad():
        teacher = Tapped(network, paths, {"stages"})(images)
    classifier = network.get_submodule(paths.classifier)
    assert isinstance(classifier, nn.Linear)
    _, dry_run = sample(SimKD())
    return replace(dry_run, teacher=teacher, teacher_classifier=classifier)


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "vgg8", "shufflenet_v1"])
def test_simkd_reuses_teachers_whose_classifier_sits_on_the_pooled_map(name: str) -> None:
    SimKD().build(zoo_teacher(name))


@pytest.mark.parametrize("name", ["wrn_16_1", "mobilenetv2_half", "shufflenet_v2"])
def test_simkd_names_the_teachers_it_cannot_reuse(name: str) -> None:
    with pytest.raises(InputError, match="classifier sits directly on"):
        SimKD().build(zoo_teacher(name))


def test_simkds_classifier_ignores_hooks_on_the_teachers() -> None:
    toy, dry_run = sample(SimKD())
    calls: list[str] = []
    assert dry_run.teacher_classifier is not None
    dry_run.teacher_classifier.register_forward_pre_hook(lambda *_: calls.append("teacher"))
    method = SimKD()
    method.build(dry_run)
    method.predict(toy.inputs().student)
    assert calls == []


def test_semckd_refuses_a_batch_of_another_size() -> None:
    toy, dry_run = sample(SemCKD())
    method = SemCKD()
    method.build(dry_run)
    inputs = toy.inputs(size=5)
    with pytest.raises(InputError, match="built for batches of 8 and got one of 5"):
        method(inputs.student, inputs.teacher, inputs.batch)


def test_semckd_refuses_batches_below_four() -> None:
    _, dry_run = sample(SemCKD())
    with pytest.raises(InputError, match="at least 4"):
        SemCKD().build(replace(dry_run, batch_size=3))


def test_semckd_attends_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    criterion = SemCKDLoss([4, 4], [8, 8], batch_size=4)
    student, teacher = [torch.randn(4, 4, 4, 4) for _ in range(2)], [torch.randn(4, 8, 4, 4) for _ in range(2)]
    expected = criterion.attention(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention = criterion.attention(student, teacher)
    torch.testing.assert_close(attention, expected, rtol=0, atol=0)
    torch.testing.assert_close(attention.sum(2), torch.ones(4, 2))


def test_semckd_pools_each_teacher_map_once_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = SemCKDLoss([4, 4, 4], [8], batch_size=4)
    pooled: list[int] = []

    def counted(feature_map: Tensor, size: int) -> Tensor:
        pooled.append(feature_map.shape[1])
        return pool_to(feature_map, size)

    monkeypatch.setattr("stillroom.distillation.offline.semckd.pool_to", counted)
    criterion.distance([torch.randn(4, 4, 2, 2) for _ in range(3)], [torch.randn(4, 8, 4, 4)])
    assert pooled.count(8) == 1


@pytest.mark.parametrize("allocation", ["proportional", "softmax", "uniform"])
@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [1.0, 2.0, 5.0], [1e4, 0.0, 1.0]])
def test_dskds_weights_are_constants_that_sum_to_one(allocation: str, losses: list[float]) -> None:
    weight = allocate(torch.tensor(losses, requires_grad=True), allocation=allocation)
    assert not weight.requires_grad
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("student_size", "teacher_size"), [(32, 8), (16, 16), (8, 16), (7, 2), (14, 4), (1, 1), (32, 7)]
)
def test_dskds_branch_meets_the_teachers_shape(student_size: int, teacher_size: int) -> None:
    branch = AuxiliaryBranch(4, student_size, 12, teacher_size, 5)
    adapted, logits = branch(torch.randn(2, 4, student_size, student_size))
    assert adapted.shape == (2, 12, teacher_size, teacher_size)
    assert logits.shape == (2, 5)


def test_dskd_refuses_a_student_without_shallow_stages() -> None:
    _, dry_run = sample(DSKD())
    with pytest.raises(InputError, match="only one is tapped"):
        DSKD().build(replace(dry_run, student=dry_run.student._replace(stages=dry_run.student.stages[-1:])))


def test_dskds_parts_add_up_to_its_loss() -> None:
    toy, dry_run = sample(DSKD(gamma=2.0))
    method = DSKD(gamma=2.0)
    method.build(dry_run)
    inputs = toy.inputs()
    parts = method(inputs.student, inputs.teacher, inputs.batch)
    torch.testing.assert_close(parts["loss"].detach(), parts["shallow_kd"] + 2 * parts["shallow_feature"])


@pytest.mark.parametrize(
    ("student_size", "teacher_size"), [(8, 8), (16, 8), (8, 16), (12, 8), (5, 12), (32, 4), (1, 1), (1, 7)]
)
def test_fitnets_regressor_meets_the_hint_or_is_smaller(student_size: int, teacher_size: int) -> None:
    regressed = FitNetRegressor(3, 5, student_size, teacher_size)(torch.randn(2, 3, student_size, student_size))
    expected = teacher_size if student_size >= teacher_size or 2 * student_size == teacher_size else student_size
    assert regressed.shape == (2, 5, expected, expected)


def test_fitnet_refuses_a_stage_that_does_not_exist() -> None:
    _, dry_run = sample(FitNet())
    with pytest.raises(InputError, match="stage 4, but the student has 3"):
        FitNet(stage=4).build(dry_run)


def test_attention_does_not_depend_on_the_scale_of_the_map() -> None:
    feature_map = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(spatial_attention(7 * feature_map), spatial_attention(feature_map))


def test_vid_is_the_likelihood_of_a_gaussian() -> None:
    torch.manual_seed(0)
    mean, teacher, rho = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(3)
    variance = F.softplus(rho)[:, None, None] + 1e-5
    expected = F.gaussian_nll_loss(mean, teacher, variance.expand_as(mean), eps=1e-12)
    torch.testing.assert_close(vid_loss(mean, teacher, rho), expected)


@pytest.mark.parametrize("start", [1e-3, 5.0, 1e3])
def test_vids_variance_starts_where_it_was_asked_to(start: float) -> None:
    criterion = VIDLoss(2, 3, init_pred_var=start)
    torch.testing.assert_close(F.softplus(criterion.log_scale.detach()) + 1e-5, torch.full((3,), start))


def test_reviewkd_reads_the_teacher_before_the_activation_where_it_can() -> None:
    toy, dry_run = sample(ReviewKD(mid_channels=4))
    method = ReviewKD(mid_channels=4)
    method.build(dry_run)
    inputs = toy.inputs()

    def loss(teacher: Signals) -> Tensor:
        return method(inputs.student, teacher, inputs.batch)["loss"].detach()

    unused = inputs.teacher._replace(stages=tuple(torch.zeros_like(x) for x in inputs.teacher.stages))
    torch.testing.assert_close(loss(unused), loss(inputs.teacher))
    after = inputs.teacher._replace(preact=())
    assert not torch.allclose(loss(after), loss(inputs.teacher))


def test_reviewkd_refuses_a_student_without_maps_before_the_activation() -> None:
    _, dry_run = sample(ReviewKD())
    with pytest.raises(InputError, match="before the activation"):
        ReviewKD(preactivation_student=True).build(replace(dry_run, student=dry_run.student._replace(preact=())))


def test_reviewkds_weight_grows_over_twenty_epochs() -> None:
    assert ReviewKD().warmup_epochs == 20
    assert ReviewKD(warmup_epochs=1).warmup_epochs == 1


def test_a_single_pixel_has_no_pyramid() -> None:
    student, teacher = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(hcl_loss([student], [teacher]), F.mse_loss(student, teacher))


def test_srrl_warns_of_pooled_vectors_its_relu_cannot_meet() -> None:
    _, dry_run = sample(SRRL())
    assert dry_run.teacher.pooled is not None
    signed = dry_run.teacher._replace(pooled=dry_run.teacher.pooled - 1)
    with pytest.warns(UserWarning, match="negative"):
        SRRL().build(replace(dry_run, teacher=signed))


def test_srrls_parts_add_up_and_judge_by_the_teachers_classifier() -> None:
    toy, dry_run = sample(SRRL())
    method = SRRL()
    method.build(dry_run)
    inputs = toy.inputs()
    parts = method(inputs.student, inputs.teacher, inputs.batch)
    torch.testing.assert_close(parts["loss"].detach(), parts["feature"] + parts["regression"])
    assert dry_run.teacher_classifier is not None
    torch.testing.assert_close(method.classifier.weight, dry_run.teacher_classifier.weight)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8])
def test_pooling_is_adaptive_average_pooling(size: int) -> None:
    feature_map = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(pool_to(feature_map, size), F.adaptive_avg_pool2d(feature_map, size))
