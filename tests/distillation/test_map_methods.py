"""The contract of the methods that match feature maps, and of SRRL."""

from __future__ import annotations

import pytest

from distillation.method_case import MethodCase
from stillroom.distillation.offline._method import Method
from stillroom.distillation.offline.at import AT
from stillroom.distillation.offline.dskd import DSKD
from stillroom.distillation.offline.fitnet import FitNet
from stillroom.distillation.offline.reviewkd import ReviewKD
from stillroom.distillation.offline.semckd import SemCKD
from stillroom.distillation.offline.simkd import SimKD
from stillroom.distillation.offline.srrl import SRRL
from stillroom.distillation.offline.vid import VID

LARGER_STUDENT = ((8, 12, 12), (16, 6, 6), (24, 3, 3))
TRANSFORMER = ((24, 4, 4), (24, 4, 4), (24, 4, 4))


class TestSimKD(MethodCase):
    trains_on = frozenset({"stages"})
    bad_arguments = ({"factor": 0},)

    def make(self) -> Method:
        return SimKD(factor=2)

    def test_forward_returns_a_loss_and_detached_scalar_parts(self) -> None:
        inputs = self.inputs()
        parts = self.built()(inputs.student, inputs.teacher, inputs.batch)
        assert set(parts) == {"loss", "output"}
        assert parts["loss"].ndim == 0
        assert parts["loss"].requires_grad
        assert parts["output"].shape == (self.batch_size, self.num_classes)
        assert not parts["output"].requires_grad


class TestSimKDWithALargerStudentMap(TestSimKD):
    student_stages = LARGER_STUDENT


class TestSimKDWithATransformerStudent(TestSimKD):
    student_stages = TRANSFORMER


class TestSemCKD(MethodCase):
    trains_on = frozenset({"stages"})
    bad_arguments = ({"soft": 0.0}, {"soft": float("nan")})
    batch_of_one_refused_because = "the embeddings are a quarter of the batch wide"
    order_matters_because = "every column of the similarity matrix has its own weights in the embedding"

    def make(self) -> Method:
        return SemCKD(soft=1.0)


class TestSemCKDAcrossDepths(TestSemCKD):
    student_stages = ((8, 12, 12), (16, 3, 3))


class TestDSKD(MethodCase):
    trains_on = frozenset({"stages"})
    bad_arguments = ({"gamma": -1.0}, {"allocation": "equal"}, {"temperature": 0.0})

    def make(self) -> Method:
        return DSKD()


class TestDSKDBySoftmax(TestDSKD):
    student_stages = TRANSFORMER
    teacher_stages = LARGER_STUDENT

    def make(self) -> Method:
        return DSKD(allocation="softmax", gamma=2.0, temperature=2.0)


class TestFitNet(MethodCase):
    trains_on = frozenset({"stages"})
    bad_arguments = ({"stage": 0},)

    def make(self) -> Method:
        return FitNet(stage=2)


class TestFitNetAcrossSizes(TestFitNet):
    student_stages = LARGER_STUDENT
    teacher_stages = TRANSFORMER


class TestAT(MethodCase):
    trains_on = frozenset({"stages"})
    bad_arguments = ({"p": 0},)

    def make(self) -> Method:
        return AT(p=2)


class TestATAcrossSizes(TestAT):
    student_stages = LARGER_STUDENT
    teacher_stages = TRANSFORMER


class TestVID(MethodCase):
    trains_on = frozenset({"stages"})
    bad_arguments = ({"eps": 0.0}, {"init_pred_var": 0.0}, {"eps": 6.0})

    def make(self) -> Method:
        return VID()


class TestVIDAcrossSizes(TestVID):
    student_stages = LARGER_STUDENT
    teacher_stages = TRANSFORMER


class TestSRRL(MethodCase):
    trains_on = frozenset({"pooled"})
    batch_of_one_refused_because = "batch statistics of one pooled vector do not exist"

    def make(self) -> Method:
        return SRRL()


class TestReviewKD(MethodCase):
    trains_on = frozenset({"stages", "pooled"})
    bad_arguments = ({"mid_channels": 0}, {"warmup_epochs": -1})
    batch_of_one_refused_because = "batch statistics of one pooled vector do not exist"

    def make(self) -> Method:
        return ReviewKD(mid_channels=8)


class TestReviewKDBeforeTheActivation(TestReviewKD):
    trains_on = frozenset({"preact", "pooled"})
    student_stages = LARGER_STUDENT

    def make(self) -> Method:
        return ReviewKD(preactivation_student=True)


@pytest.mark.filterwarnings("ignore:reviewkd pairs stages:UserWarning")
class TestReviewKDAcrossDepths(TestReviewKD):
    student_stages = ((8, 8, 8), (16, 4, 4))
