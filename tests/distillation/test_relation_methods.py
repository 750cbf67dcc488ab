"""The contract and the particulars of the relational and contrastive methods."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distillation.method_case import MethodCase
from stillroom.distillation.offline._graph import GraphLayer, prediction_neighbours
from stillroom.distillation.offline._memory import Negatives, initial_memory, memory_scores, update_memory
from stillroom.distillation.offline._method import Method
from stillroom.distillation.offline.cc import CC, CCLoss, cc_loss
from stillroom.distillation.offline.crd import CRD, CRDLoss, crd_loss
from stillroom.distillation.offline.hkd import HKD, HKDLoss, hkd_loss
from stillroom.distillation.offline.pkt import PKT, PKTLoss, pkt_loss
from stillroom.distillation.offline.rkd import RKD, RKDLoss, rkd_angle_loss, rkd_distance_loss
from stillroom.distillation.offline.sp import SP, SPLoss, sp_loss
from stillroom.errors import InputError
from stillroom.losses.pairwise import gram, product

TRANSFORMER = ((24, 4, 4), (24, 4, 4), (24, 4, 4))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- the contract -------------------------------------------------------------------------------------------------


class TestSP(MethodCase):
    trains_on = frozenset({"stages"})

    def make(self) -> Method:
        return SP()


class TestSPFromTransformer(TestSP):
    teacher_stages = TRANSFORMER


class TestPKT(MethodCase):
    trains_on = frozenset({"pooled"})

    def make(self) -> Method:
        return PKT()


class TestRKD(MethodCase):
    trains_on = frozenset({"pooled"})
    bad_arguments = ({"distance_weight": -1.0}, {"angle_weight": float("nan")})

    def make(self) -> Method:
        return RKD()


class TestCC(MethodCase):
    trains_on = frozenset({"pooled"})
    bad_arguments = ({"feature_dim": 0},)
    order_matters_because = "the benchmarks' form multiplies the errors of consecutive samples"

    def make(self) -> Method:
        return CC(feature_dim=16)


class TestCRD(MethodCase):
    trains_on = frozenset({"pooled"})
    bad_arguments = ({"feature_dim": 0}, {"num_negatives": 0}, {"temperature": 0.0}, {"momentum": 1.5})

    def make(self) -> Method:
        return CRD(feature_dim=16, num_negatives=12)


class TestHKD(MethodCase):
    trains_on = frozenset({"pooled"})
    bad_arguments = (
        {"knn": 0},
        {"feature_dim": 0},
        {"num_negatives": 0},
        {"temperature": -1.0},
        {"memory_momentum": 1.5},
        {"smooth_momentum": -0.1},
        {"negatives": "both"},
    )
    batch_of_one_refused_because = "a graph of knn neighbours needs as many samples in the dry run"

    def make(self) -> Method:
        return HKD(knn=4, feature_dim=16, num_negatives=12)


class TestHKDWithNegativesOfTheOtherNetwork(TestHKD):
    def make(self) -> Method:
        return HKD(knn=4, feature_dim=16, num_negatives=100, negatives="cross")


@pytest.mark.parametrize("method", [SP(), PKT(), RKD(), CC(), CRD(), HKD()], ids=lambda method: method.card.name)
def test_a_network_without_the_features_is_refused_by_name(method: Method) -> None:
    case = TestSP()
    dry_run = case.dry_run()
    bare = dry_run.student._replace(stages=(), pooled=None)
    full = dry_run.teacher._replace(pooled=torch.zeros(8, 4))
    with pytest.raises(InputError, match="student"):
        method.build(type(dry_run)(**{**vars(dry_run), "student": bare, "teacher": full}))
    with pytest.raises(InputError, match="teacher"):
        method.build(type(dry_run)(**{**vars(dry_run), "student": full, "teacher": bare}))


@pytest.mark.parametrize("loss", [SPLoss(), PKTLoss(), RKDLoss(), CCLoss(4, 4)], ids=lambda loss: type(loss).__name__)
def test_batches_of_different_sizes_are_refused(loss: torch.nn.Module) -> None:
    with pytest.raises(InputError, match="3 vs 2"):
        loss(torch.ones(3, 4), torch.ones(2, 4))


# -- pairwise relations -------------------------------------------------------------------------------------------


def test_products_are_in_single_precision_inside_autocast() -> None:
    features = randn(6, 300, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (features @ features.T).dtype is torch.bfloat16
        inside = product(features, features.T), gram(features)
    torch.testing.assert_close(inside, (features @ features.T,) * 2, rtol=0, atol=0)


def test_sp_ignores_the_scale_of_each_network() -> None:
    student, teacher = randn(5, 3, 4, 4), randn(5, 7, 2, 2, seed=1)
    torch.testing.assert_close(sp_loss(student, teacher), sp_loss(3 * student, 0.1 * teacher))
    assert sp_loss(student, 2 * student) < 1e-20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pkt_of_opposite_samples_is_finite_however_their_cosine_rounds(dtype: torch.dtype) -> None:
    below = 0
    for seed in range(60):
        features = 100 * randn(1, 40 + seed, seed=seed, dtype=dtype)
        student = torch.cat((features, -features)).requires_grad_()
        unit = student.detach() / student.detach().norm(dim=1, keepdim=True)
        below += int((unit[0] @ unit[1]) < -1)
        loss = pkt_loss(student, randn(2, 3, seed=seed, dtype=dtype))
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()
    assert below, "no cosine below -1 among these samples: the test shows nothing"


def test_rkd_relations_are_those_of_explicit_loops() -> None:
    student, teacher = randn(5, 4), randn(5, 6, seed=1)

    def relations(points: Tensor) -> tuple[Tensor, Tensor]:
        size = len(points)
        distance, angle = torch.zeros(size, size).double(), torch.zeros(size, size, size).double()
        for i in range(size):
            for j in range(size):
                distance[i, j] = (points[i] - points[j]).norm()
                for k in range(size):
                    if i not in (j, k):
                        angle[i, j, k] = F.cosine_similarity(points[j] - points[i], points[k] - points[i], dim=0)
        return distance / distance[distance > 0].mean(), angle

    (distance_student, angle_student), (distance_teacher, angle_teacher) = relations(student), relations(teacher)
    expected = F.smooth_l1_loss(distance_student, distance_teacher)
    torch.testing.assert_close(rkd_distance_loss(student, teacher), expected)
    torch.testing.assert_close(rkd_angle_loss(student, teacher), F.smooth_l1_loss(angle_student, angle_teacher))


def test_rkd_ignores_shift_scale_and_rotation() -> None:
    student, teacher = randn(6, 4), randn(6, 4, seed=1)
    rotation = torch.linalg.qr(randn(4, 4, seed=2)).Q
    loss = RKDLoss()
    torch.testing.assert_close(loss(3 * student @ rotation + 5, teacher), loss(student, teacher))


def test_rkd_of_one_sample_is_zero_with_a_finite_gradient() -> None:
    student = randn(1, 4).requires_grad_()
    loss = RKDLoss()(student, randn(1, 4))
    loss.backward()
    assert loss == 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rkd_of_equal_samples_is_zero_or_has_a_tame_gradient(dtype: torch.dtype) -> None:
    equal = torch.full((4, 3), 7.3, dtype=dtype).requires_grad_()
    assert RKDLoss()(equal, torch.ones(4, 5, dtype=dtype)) == 0
    RKDLoss()(equal, randn(4, 3, dtype=dtype)).backward()
    assert (equal.grad == 0).all()
    twins = randn(4, 3, dtype=dtype)
    twins[1] = twins[0]
    twins.requires_grad_()
    RKDLoss()(twins, randn(4, 3, seed=1, dtype=dtype)).backward()
    assert twins.grad.abs().max() < 1e3


def test_rkd_leaves_out_what_has_no_weight() -> None:
    student, teacher = randn(4, 3), randn(4, 3, seed=1)
    assert set(RKDLoss(angle_weight=0).terms(student, teacher)) == {"distance"}
    torch.testing.assert_close(RKDLoss(distance_weight=0)(student, teacher), 50 * rkd_angle_loss(student, teacher))
    with pytest.raises(InputError, match="both 0"):
        RKDLoss(distance_weight=0, angle_weight=0)


def test_cc_of_one_sample_is_zero() -> None:
    assert cc_loss(randn(1, 3), randn(1, 3, seed=1)) == 0


def test_cc_trains_both_embeddings_but_not_the_teacher() -> None:
    criterion, teacher = CCLoss(4, 5, feature_dim=3), randn(6, 5, dtype=torch.float32).requires_grad_()
    criterion(randn(6, 4, dtype=torch.float32), teacher).backward()
    assert teacher.grad is None
    assert criterion.embed_teacher.weight.grad.abs().sum() > 0


# -- negatives ----------------------------------------------------------------------------------------------------


def test_negatives_are_distinct_and_of_other_classes() -> None:
    target = torch.randint(0, 7, (100,), generator=torch.Generator().manual_seed(0))
    draw = Negatives(target, count=40, seed=3)
    index = torch.arange(100)
    for _ in range(5):
        drawn = draw(index)
        assert drawn.shape == (100, 40)
        assert (target[drawn] != target[:, None]).all()
        assert all(len(row.unique()) == 40 for row in drawn)


def test_all_other_samples_are_drawn_when_as_many_are_asked_for() -> None:
    target = torch.arange(30) % 3
    drawn = Negatives(target, count=1000, seed=0)(torch.tensor([4, 5]))
    for row, own in zip(drawn, (1, 2), strict=True):
        assert row.sort().values.tolist() == [i for i in range(30) if i % 3 != own]


def test_a_class_with_too_few_others_repeats_them() -> None:
    target = torch.tensor([0] * 8 + [1, 2])
    draw = Negatives(target, count=100, seed=0)
    assert draw.count == 9
    drawn = draw(torch.tensor([0, 8]))
    assert set(drawn[0].tolist()) == {8, 9}
    assert len(drawn[1].unique()) == 9


def test_negatives_are_uniform_over_the_other_samples() -> None:
    target = torch.arange(50) % 5
    draw, index, rounds = Negatives(target, count=7, seed=1), torch.arange(50), 400
    hits = torch.zeros(50, 50)
    for _ in range(rounds):
        hits.scatter_add_(1, draw(index), torch.ones(50, 7))
    others = target[:, None] != target
    share = hits[others] / rounds
    chance = 7 / 40
    spread = (chance * (1 - chance) / rounds) ** 0.5
    assert (share - chance).abs().max() < 5 * spread
    # As scattered as independent draws, neither stuck nor even: the variance of the shares is the binomial one.
    assert 0.8 < share.var() / spread**2 < 1.2


def test_every_pair_of_negatives_can_meet() -> None:
    draw, index = Negatives(torch.tensor([0, 1, 1, 1, 1, 1, 1]), count=3, seed=0), torch.tensor([0])
    pairs = set()
    for _ in range(200):
        a, b, c = draw(index)[0].sort().values.tolist()
        pairs |= {(a, b), (a, c), (b, c)}
    assert len(pairs) == 15


def test_the_draw_depends_on_the_seed_the_step_and_the_sample_only() -> None:
    target = torch.arange(1000) % 10
    index = torch.tensor([5, 17, 900])
    first, second, other = (Negatives(target, count=20, seed=seed) for seed in (0, 0, 1))
    drawn = first(index)
    torch.testing.assert_close(second(index.flip(0)).flip(0), drawn, rtol=0, atol=0)
    assert not torch.equal(other(index), drawn)
    assert not torch.equal(first(index), drawn)
    assert not torch.equal(drawn[0] - drawn[0, 0], drawn[1] - drawn[1, 0])


def test_the_counter_stands_still_in_evaluation_mode() -> None:
    draw, index = Negatives(torch.arange(100) % 10, count=20, seed=0).eval(), torch.tensor([3])
    torch.testing.assert_close(draw(index), draw(index), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), "all training samples are of class 0"),
        (torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.tensor([0, -1]), "negative"),
        (torch.tensor([0.0, 1.0]), "int64"),
    ],
)
def test_unusable_training_classes_are_refused(target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Negatives(target, count=4, seed=0)


# -- memories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [10, 1000], ids=["whole memory", "gathered rows"])
def test_scores_are_inner_products_with_the_rows_before_the_update(rows: int) -> None:
    anchors, memory = randn(2, 5, 4).requires_grad_(), randn(rows, 4, seed=1)
    index = torch.randint(0, rows, (5, 6), generator=torch.Generator().manual_seed(2))
    expected = torch.einsum("abd,bkd->abk", anchors, memory[index])
    weight = randn(2, 5, 6, seed=3)
    expected_gradient = torch.autograd.grad((expected * weight).sum(), anchors)[0]
    scores = memory_scores(anchors, memory, index)
    torch.testing.assert_close(scores, expected)
    update_memory(memory, index[:, 0], anchors[0], momentum=0.5)
    torch.testing.assert_close(torch.autograd.grad((scores * weight).sum(), anchors)[0], expected_gradient)


def test_initial_memories_have_rows_of_mean_square_length_one() -> None:
    memory = initial_memory(5000, 32, torch.Generator().manual_seed(0))
    assert memory.abs().max() <= (3 / 32) ** 0.5
    assert abs(memory.square().sum(dim=1).mean() - 1) < 0.01


ONE_OF_TWO_PROCESSES = """
import sys, torch
from torch import distributed
from stillroom.distillation.offline._memory import update_memory
rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
index = torch.tensor([[4, 0], [2, 5]])[rank]
memory = torch.ones(6, 3)
update_memory(memory, index, torch.eye(3)[:2] + rank, momentum=0.5)
torch.save(memory, f"{store}.{rank}")
distributed.destroy_process_group()
"""


def test_memories_take_the_batches_of_all_processes(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    runs = [subprocess.Popen([sys.executable, "-c", ONE_OF_TWO_PROCESSES, str(rank), store]) for rank in (0, 1)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    expected = torch.ones(6, 3)
    update_memory(
        expected, torch.tensor([4, 0, 2, 5]), torch.cat((torch.eye(3)[:2], torch.eye(3)[:2] + 1)), momentum=0.5
    )
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(f"{store}.{rank}", weights_only=True), expected, rtol=0, atol=0)


def test_an_index_beyond_the_training_set_is_refused() -> None:
    criterion = CRDLoss(3, 3, torch.arange(10) % 2, feature_dim=4)
    for position in (10, -1):
        with pytest.raises(IndexError):
            criterion(torch.ones(1, 3), torch.ones(1, 3), torch.tensor([position]))


def test_contrast_that_does_not_fit_is_refused() -> None:
    e, memory, z, index = randn(2, 4), randn(9, 4), torch.tensor(-1.0), torch.tensor([0, 1])
    contrast = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(InputError, match="negatives must be"):
        crd_loss(e, e, memory, memory, contrast[:, :1], z, z)
    with pytest.raises(InputError, match="index must be"):
        crd_loss(e, e, memory, memory, contrast[:1], z, z)
    with pytest.raises(InputError, match="memory must be"):
        hkd_loss(e, e, None, None, memory[:, :3], memory, index, contrast)
    with pytest.raises(InputError, match="index must be"):
        hkd_loss(e, e, None, None, memory, memory, index.int(), contrast)


# -- CRD ----------------------------------------------------------------------------------------------------------


def test_crd_sets_its_constants_once() -> None:
    criterion = CRDLoss(4, 6, torch.arange(40) % 5, feature_dim=8, num_negatives=10)
    assert criterion.z_student < 0
    criterion(randn(3, 4).float(), randn(3, 6).float(), torch.tensor([1, 2, 3]))
    first = criterion.z_student.clone(), criterion.z_teacher.clone()
    assert min(first) > 0
    criterion(randn(3, 4, seed=1).float(), randn(3, 6, seed=1).float(), torch.tensor([4, 5, 6]))
    assert (criterion.z_student, criterion.z_teacher) == first


def test_crd_stays_finite_where_exponentials_overflow() -> None:
    e = F.normalize(randn(4, 8, dtype=torch.float32), dim=1)
    memory = torch.cat((e, -e))
    contrast, z = torch.arange(8).expand(4, 8), torch.tensor(1.0)
    e.requires_grad_()
    terms = crd_loss(e, e, memory, memory, contrast, z, z, temperature=1e-3)
    (terms.student + terms.teacher).backward()
    assert torch.isfinite(terms.student)
    assert torch.isfinite(e.grad).all()


# -- HKD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_of_equal_predictions_are_equally_near_to_all_others(dtype: torch.dtype) -> None:
    for seed in range(40):
        logits = randn(9 + seed, 5 + 3 * seed, seed=seed, dtype=dtype)
        last = len(logits) - 1  # where a blocked matrix product rounds by another path
        logits[last] = logits[2]
        order = prediction_neighbours(logits, knn=len(logits)).tolist()
        others = [row for position, row in enumerate(order) if position not in (2, last)]
        assert all(row.index(last) == row.index(2) + 1 for row in others)


def test_neighbours_start_with_the_sample_and_break_ties_by_position() -> None:
    same = torch.ones(6, 3)
    assert prediction_neighbours(same, knn=3).tolist() == [
        [0, 1, 2],
        [1, 0, 2],
        [2, 0, 1],
        [3, 0, 1],
        [4, 0, 1],
        [5, 0, 1],
    ]


def test_the_graph_layer_is_the_normalised_sum_over_in_degrees() -> None:
    layer, e = GraphLayer(4).double(), randn(6, 4)
    neighbours = prediction_neighbours(randn(6, 3, seed=1), knn=3)
    adjacency = torch.zeros(6, 6).double().scatter(1, neighbours, 1.0)
    degree = adjacency.sum(dim=1)
    aggregated = (adjacency / (degree[:, None] * degree).sqrt()) @ e
    linear = layer.linear
    expected = F.normalize(torch.cat((e, aggregated), dim=1) @ linear.weight.T + linear.bias, dim=1)
    torch.testing.assert_close(layer(e, neighbours), expected)


def test_hkd_is_the_sum_of_four_cross_entropies() -> None:
    es, et, gs, gt = (F.normalize(randn(3, 4, seed=seed), dim=1) for seed in range(4))
    ms, mt = randn(9, 4, seed=5), randn(9, 4, seed=6)
    index, negatives = torch.tensor([2, 0, 7]), torch.tensor([[1, 3], [4, 5], [6, 8]])

    def entropy(anchor: Tensor, positive: Tensor, memory: Tensor) -> Tensor:
        scores = torch.cat(
            ((anchor * positive).sum(1, keepdim=True), (memory[negatives] @ anchor[..., None])[..., 0]), 1
        )
        return F.cross_entropy(scores / 0.07, torch.zeros(3, dtype=torch.int64))

    smooth_s, smooth_t = (
        F.normalize(0.75 * ms[index] + 0.25 * gs, dim=1),
        F.normalize(0.75 * mt[index] + 0.25 * gt, dim=1),
    )
    own = hkd_loss(es, et, gs, gt, ms, mt, index, negatives)
    torch.testing.assert_close(own.individual, entropy(es, mt[index], ms) + entropy(et, ms[index], mt))
    torch.testing.assert_close(own.graph, entropy(gs, smooth_t, ms) + entropy(gt, smooth_s, mt))
    cross = hkd_loss(es, et, gs, gt, ms, mt, index, negatives, source="cross")
    torch.testing.assert_close(cross.individual, entropy(es, mt[index], mt) + entropy(et, ms[index], ms))
    torch.testing.assert_close(cross.graph, entropy(gs, smooth_t, mt) + entropy(gt, smooth_s, ms))


def hkd_step(criterion: HKDLoss, size: int, seed: int = 0) -> Tensor:
    features, logits = randn(size, 4, seed=seed).float(), randn(size, 5, seed=seed + 1).float()
    return criterion(features, features, logits, logits.flip(1), torch.arange(size))


def test_hkd_leaves_its_memories_when_the_batch_is_smaller_than_the_graph() -> None:
    criterion = HKDLoss(4, 4, torch.arange(20) % 5, knn=3, feature_dim=6)
    before = criterion.memory_student.clone(), criterion.memory_teacher.clone()
    for size in (1, 2):
        assert torch.isfinite(hkd_step(criterion, size))
    torch.testing.assert_close((criterion.memory_student, criterion.memory_teacher), before, rtol=0, atol=0)
    hkd_step(criterion, 3)
    assert not torch.equal(criterion.memory_student[:3], before[0][:3])
    torch.testing.assert_close(criterion.memory_student[3:], before[0][3:], rtol=0, atol=0)
    torch.testing.assert_close(criterion.memory_teacher[:3].norm(dim=1), torch.ones(3))


def test_hkd_refuses_batches_that_never_have_a_graph() -> None:
    with pytest.raises(InputError, match="batches of at least knn=8 samples, got 4"):
        HKD().build(TestHKD().dry_run(4))


@pytest.mark.parametrize("kind", [CRDLoss, HKDLoss])
def test_evaluation_mode_moves_no_state(kind: type[CRDLoss] | type[HKDLoss]) -> None:
    criterion = kind(4, 4, torch.arange(20) % 5, feature_dim=6).eval()
    before = copy.deepcopy(criterion.state_dict())
    if isinstance(criterion, HKDLoss):
        hkd_step(criterion, 10)
    else:
        criterion(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 1]))
    torch.testing.assert_close(criterion.state_dict(), before, rtol=0, atol=0)


def test_a_resumed_hkd_takes_the_steps_of_the_uninterrupted_one() -> None:
    torch.manual_seed(0)
    first = HKDLoss(4, 4, torch.arange(200) % 5, knn=3, feature_dim=6, num_negatives=20, seed=4)
    for seed in range(3):
        hkd_step(first, 6, seed)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = HKDLoss(4, 4, torch.arange(200) % 5, knn=3, feature_dim=6, num_negatives=20, seed=4)
    second.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(3, 6):
        torch.testing.assert_close(hkd_step(second, 6, seed), hkd_step(first, 6, seed), rtol=0, atol=0)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)
