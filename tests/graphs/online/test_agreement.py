"""What students learn from each other's predictions and embeddings, against loops and torch.distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from graphs.online.graph_method_case import batch, changed, edges, outputs
from stillroom.errors import InputError
from stillroom.graphs.online.agreement import label_loss, mean_of_others, mean_of_others_loss, prediction_kl
from stillroom.graphs.online.codistill import edge_codistill_loss, feature_codistill_loss
from stillroom.graphs.online.dml import DML, dml_loss
from stillroom.graphs.online.independent import Independent
from stillroom.graphs.online.kdcl import KDCL, kdcl_loss
from stillroom.graphs.online.lsp import LSP
from stillroom.graphs.online.oad import OAD
from stillroom.graphs.online.one import ONE, Gate
from stillroom.graphs.structure import lsp_loss

quick = settings(max_examples=25, deadline=None)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 6))
temperatures = st.floats(0.5, 8.0)


def several(count: int, shape: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count)]


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student), mean over the nodes, times T^2."""
    p, q = Categorical(logits=teacher / temperature), Categorical(logits=student / temperature)
    return temperature**2 * kl_divergence(p, q).mean()


def check_equal(value: Any, expected: Any, leaves: list[Tensor]) -> None:
    """Equal in value and gradient."""
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(each, leaves, retain_graph=True) for each in (value, expected))
    torch.testing.assert_close(ours, theirs)


@quick
@given(shape=shapes, temperature=temperatures, seed=st.integers(0, 999))
def test_the_divergences_are_those_of_torch_distributions(
    shape: tuple[int, int], temperature: float, seed: int
) -> None:
    student, teacher = several(2, shape, seed)
    softmax = prediction_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(softmax, kl(student, teacher, temperature), rtol=1e-6, atol=1e-12)
    reference = prediction_kl(student, teacher, temperature=temperature, reduction="reference")
    torch.testing.assert_close(reference * student.numel(), softmax)
    bernoulli = prediction_kl(student, teacher, temperature=temperature, kind="bernoulli")
    p, q = Bernoulli(logits=teacher / temperature), Bernoulli(logits=student / temperature)
    torch.testing.assert_close(bernoulli, temperature**2 * kl_divergence(p, q).mean(), rtol=1e-6, atol=1e-12)
    for kind in ("softmax", "bernoulli"):
        equal: Any = prediction_kl(student, student.detach(), temperature=temperature, kind=kind)  # type: ignore[arg-type]
        assert abs(equal) < 1e-12
        assert torch.autograd.grad(equal, student)[0].abs().max() < 1e-12


def test_certain_predictions_of_several_labels_have_a_finite_divergence() -> None:
    student = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    loss = prediction_kl(student, -student.detach(), temperature=1.0, kind="bernoulli")
    loss.backward()
    assert loss == 1e4
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -1.0, 1.0]]) / 3)


@quick
@given(count=st.integers(2, 5), shape=shapes, seed=st.integers(0, 999))
def test_the_mean_of_the_others_leaves_oneself_out(count: int, shape: tuple[int, int], seed: int) -> None:
    logits = several(count, shape, seed)
    for i, mean in enumerate(mean_of_others(logits)):
        torch.testing.assert_close(mean, torch.stack(logits[:i] + logits[i + 1 :]).mean(0))
        gradients = torch.autograd.grad(mean.sum(), logits, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [j != i for j in range(count)]


def test_large_logits_of_one_leave_the_mean_of_the_others_alone() -> None:
    large, small = torch.full((1, 2), 3e38), torch.tensor([[1.0, 2.0]])
    first, second = mean_of_others([large.bfloat16(), small.bfloat16()])
    assert first.dtype is torch.float32
    torch.testing.assert_close(first, small, rtol=0, atol=0)
    torch.testing.assert_close(second, large.bfloat16().float(), rtol=0, atol=0)


@quick
@given(count=st.integers(2, 4), temperature=temperatures, seed=st.integers(0, 999))
def test_mutual_terms_equal_loops_over_pairs(count: int, temperature: float, seed: int) -> None:
    logits = several(count, (4, 3), seed)
    dml = sum(kl(logits[i], logits[j].detach(), temperature) for i in range(count) for j in range(count) if i != j)
    mean = sum(
        kl(own, torch.stack([o.detach() for j, o in enumerate(logits) if j != i]).mean(0), temperature)
        for i, own in enumerate(logits)
    )
    check_equal(dml_loss(logits, temperature=temperature), dml / (count - 1), logits)
    check_equal(mean_of_others_loss(logits, temperature=temperature), mean, logits)


@quick
@given(count=st.integers(2, 4), temperature=temperatures, seed=st.integers(0, 999))
def test_collaborative_targets_equal_loops_over_nodes(count: int, temperature: float, seed: int) -> None:
    logits, target = several(count, (4, 3), seed), torch.tensor([0, 2, 1, 1])
    best = min(range(count), key=lambda i: F.cross_entropy(logits[i], target).item())
    naive = sum(kl(own, logits[best].detach(), temperature) for i, own in enumerate(logits) if i != best)
    loss = kdcl_loss(logits, target, temperature=temperature)
    torch.testing.assert_close(loss, naive)
    gradients = torch.autograd.grad(loss, logits)  # of the best one rounding only
    assert gradients[best].abs().max() < 1e-12
    assert all(gradient.abs().max() > 1e-6 for i, gradient in enumerate(gradients) if i != best)

    soft = torch.zeros(4, 3, dtype=torch.float64)
    for n in range(4):
        for c in range(3):
            soft[n, c] = min(float((own[n, c] - own[n, target[n]]).detach()) for own in logits)
    least = kdcl_loss(logits, target, teacher="minlogit", temperature=temperature)
    check_equal(least, sum(kl(own, soft, temperature) for own in logits), logits)


def test_the_target_of_least_logits_never_favours_the_right_class_more_than_a_student_does() -> None:
    logits, target = several(3, (20, 4)), torch.arange(20) % 4
    right = torch.stack([(own - own.gather(1, target[:, None])) for own in logits]).amin(0)
    for own in logits:
        assert (right.softmax(1).gather(1, target[:, None]) >= own.softmax(1).gather(1, target[:, None]) - 1e-12).all()


@pytest.mark.parametrize("make", [DML, KDCL, LSP])
def test_without_weight_a_method_is_independent_training(make: Any) -> None:
    losses = []
    for method in (make(weight=0.0), Independent()):
        method.build(outputs(), multilabel=False)
        losses.append(method(outputs(), batch())["loss"])
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("multilabel", [True, False])
def test_dml_compares_what_the_logits_mean(detach: bool, multilabel: bool) -> None:
    said, given = outputs(), batch(multilabel=multilabel)
    method = DML(detach=detach, weight=2.0, temperature=2.0)
    method.build(said, multilabel=multilabel)
    picked, target = [each.logits[given.labelled] for each in said], given.target[given.labelled]
    kind: Any = "bernoulli" if multilabel else "softmax"
    mutual = dml_loss(picked, temperature=2.0, kind=kind, detach=detach)
    labels = torch.stack([label_loss(each, target) for each in picked]).sum()
    check_equal(method(said, given)["loss"], labels + 2 * mutual, [each.logits for each in said])
    other = dml_loss(picked, temperature=2.0, kind=kind, detach=not detach)
    first, second = (torch.autograd.grad(each, said[0].logits, retain_graph=True)[0] for each in (mutual, other))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("multilabel", [True, False])
def test_one_imitates_the_mixture_it_trains(multilabel: bool) -> None:
    torch.manual_seed(0)
    said, given = outputs(), batch(multilabel=multilabel)
    method = ONE(weight=2.0, temperature=2.0)
    method.build(said, multilabel=multilabel)
    picked, target = [each.logits[given.labelled] for each in said], given.target[given.labelled]
    mixture = method.gate(F.relu(said[0].hidden[0])[given.labelled], picked)
    kind: Any = "bernoulli" if multilabel else "softmax"
    labels = torch.stack([label_loss(each, target) for each in (*picked, mixture)]).sum()
    mutual = torch.stack([prediction_kl(each, mixture, temperature=2.0, kind=kind) for each in picked]).sum()
    check_equal(method(said, given)["loss"], labels + 2 * mutual, [each.logits for each in said])


def test_only_labelled_nodes_count_in_predictions() -> None:
    given, said = batch(), outputs()
    rows = torch.zeros(len(given.x), dtype=torch.bool).index_fill(0, given.labelled, True)
    other = changed(said, lambda each: torch.where(rows[:, None], each, -each))
    for make in (Independent, DML, KDCL):
        method = make()
        method.build(said, multilabel=False)
        torch.testing.assert_close(method(said, given)["loss"], method(other, given)["loss"], rtol=0, atol=0)
    again = given._replace(target=torch.where(rows, given.target, -1))  # unknown labels elsewhere
    torch.testing.assert_close(Independent()(said, given)["loss"], Independent()(said, again)["loss"])


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
def test_lsp_between_students_is_the_loss_of_every_pair(direction: Any) -> None:
    said, given = outputs(), batch()._replace(complete=torch.arange(12) > 3)
    method = LSP(direction=direction, scale="auto", weight=3.0)
    method.build(said, multilabel=False)
    parts = method(said, given)
    last = [each.hidden[-1] for each in said]
    expected = sum(
        lsp_loss(last[i], last[j].detach(), given.edge_index, direction=direction, scale="auto", nodes=given.complete)
        for i in range(3)
        for j in range(3)
        if i != j
    )
    torch.testing.assert_close(parts["structure"], (expected / 2).detach())  # type: ignore[union-attr]
    ours = torch.autograd.grad(parts["loss"], last)
    theirs = torch.autograd.grad(3 * expected / 2, last)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("make", "part", "term"), [(DML, "mutual", dml_loss), (OAD, "predictions", mean_of_others_loss)]
)
def test_predictions_may_be_compared_at_all_nodes(make: Any, part: str, term: Any) -> None:
    said, given = outputs(), batch()
    for nodes, logits in (
        ("labelled", [each.logits[given.labelled] for each in said]),
        ("all", [each.logits for each in said]),
    ):
        method = make(nodes=nodes)
        method.build(said, multilabel=False)
        parts = method(said, given)
        torch.testing.assert_close(parts[part], term(logits).detach())
        labels = [label_loss(each.logits[given.labelled], given.target[given.labelled]) for each in said]
        torch.testing.assert_close(parts["labels"], torch.stack(labels).sum().detach())


def test_features_follow_the_mean_of_the_others() -> None:
    features = several(3, (5, 4))
    others = [(features[1] + features[2]) / 2, (features[0] + features[2]) / 2, (features[0] + features[1]) / 2]
    loss = feature_codistill_loss(features)
    torch.testing.assert_close(loss, sum(((f - o) ** 2).mean() for f, o in zip(features, others, strict=True)))
    held, free = (
        torch.autograd.grad(feature_codistill_loss(features, detach=detach), features) for detach in (True, False)
    )
    torch.testing.assert_close(held[0], 2 * (features[0] - others[0]) / 20)
    assert not torch.allclose(held[0], free[0])
    divergence = feature_codistill_loss(features, kind="kl", temperature=2.0)
    torch.testing.assert_close(divergence, sum(kl(f, o, 2.0) for f, o in zip(features, others, strict=True)))


@pytest.mark.parametrize("edge_value", ["norm1", "norm2", "sigmoid"])
def test_edges_follow_those_of_the_mean_of_the_others(edge_value: Any) -> None:
    features, edge_index = several(2, (12, 4)), edges()

    def distribution(each: Tensor) -> Categorical:
        difference = each[edge_index[0]] - each[edge_index[1]]
        size = difference.norm(dim=1) if edge_value != "norm1" else difference.abs().sum(1)
        return Categorical(logits=size.sigmoid() if edge_value == "sigmoid" else size)

    first, second = map(distribution, features)
    expected = (kl_divergence(second, first) + kl_divergence(first, second)) / edge_index.shape[1]
    loss = edge_codistill_loss(features, edge_index, edge_value=edge_value)
    torch.testing.assert_close(loss, expected)
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss, features))  # the loops' too
    assert edge_codistill_loss(features, edge_index[:, :0], edge_value=edge_value) == 0


def test_the_gate_mixes_between_the_students() -> None:
    torch.manual_seed(0)
    gate, hidden, logits = Gate(4, 3), torch.randn(6, 4), [torch.randn(6, 5) for _ in range(3)]
    mixture, stacked = gate(hidden, logits), torch.stack(logits)
    assert (mixture >= stacked.amin(0) - 1e-6).all()
    assert (mixture <= stacked.amax(0) + 1e-6).all()
    torch.testing.assert_close(gate(hidden, [logits[0]] * 3), logits[0])
    with pytest.raises(InputError, match="one needs at least 2 labelled nodes in every batch, not 1"):
        gate(hidden[:1], [each[:1] for each in logits])
    gate.eval()(hidden[:1], [each[:1] for each in logits])


def test_equal_students_have_nothing_to_learn_from_each_other() -> None:
    same = [several(1, (6, 3))[0] for _ in range(3)]
    assert dml_loss(same) == 0
    assert feature_codistill_loss(same) == 0
    assert abs(mean_of_others_loss(same)) < 1e-12
    assert kdcl_loss(same, torch.zeros(6, dtype=torch.int64)) == 0
    assert edge_codistill_loss(same, torch.randint(6, (2, 9))).abs() < 1e-12


def test_bad_input_is_refused() -> None:
    logits = torch.zeros(4, 3)
    with pytest.raises(InputError, match=r"must be two equal \[N, C\], not \[4, 3\] and \[4, 2\]"):
        prediction_kl(logits, torch.zeros(4, 2))
    with pytest.raises(InputError, match="must be two equal"):
        prediction_kl(logits[:0], logits[:0])
    with pytest.raises(InputError, match="temperature"):
        prediction_kl(logits, logits, temperature=0.0)
    with pytest.raises(InputError, match="kind must be softmax or bernoulli, not 'sigmoid'"):
        prediction_kl(logits, logits, kind="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reduction must be batchmean or reference, not 'sum'"):
        prediction_kl(logits, logits, reduction="sum")  # type: ignore[arg-type]
    for loss in (dml_loss, mean_of_others, mean_of_others_loss):
        with pytest.raises(InputError, match="at least 2, not 1"):
            loss([logits])  # type: ignore[operator]
        with pytest.raises(InputError, match=r"one shape, not \[4, 3\], \[4, 1\]"):
            loss([logits, logits[:, :1]])  # type: ignore[operator]
    with pytest.raises(InputError, match="every node must have one class"):
        kdcl_loss([logits, logits], logits)
    with pytest.raises(InputError, match="teacher must be naive or minlogit, not 'best'"):
        kdcl_loss([logits, logits], torch.zeros(4, dtype=torch.int64), teacher="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kind must be mse or kl, not 'l1'"):
        feature_codistill_loss([logits, logits], kind="l1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="edge_value must be norm2, norm1 or sigmoid, not 'cos'"):
        edge_codistill_loss([logits, logits], edges()[:, :0], edge_value="cos")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no labelled node"):
        label_loss(logits[:0], torch.zeros(0, dtype=torch.int64))
    for target in (torch.zeros(4, dtype=torch.int32), torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 3).long()):
        with pytest.raises(InputError, match=r"target must be \[4\] int64 classes or \[4, 3\] floats"):
            label_loss(logits, target)
