"""The contract, method by method; none is without its case."""

from __future__ import annotations

import pytest
from typing_extensions import override

from graphs.online.graph_method_case import GraphMethodCase
from stillroom.errors import InputError
from stillroom.graphs.methods import METHODS, method_class
from stillroom.graphs.online._method import Method
from stillroom.graphs.online.alignahead import Alignahead
from stillroom.graphs.online.alignahead_pp import AlignaheadPP
from stillroom.graphs.online.codistill import Codistill
from stillroom.graphs.online.dml import DML
from stillroom.graphs.online.independent import Independent
from stillroom.graphs.online.kdcl import KDCL
from stillroom.graphs.online.lsp import LSP
from stillroom.graphs.online.oad import OAD
from stillroom.graphs.online.one import ONE

STRUCTURE = ({"kernel": "cosine"}, {"scale": 0.0}, {"scale": "mean"}, {"scale": float("nan")})
TEMPERATURE = ({"temperature": 0.0}, {"temperature": float("inf")})


class TestIndependent(GraphMethodCase):
    refuses_unequal_depths = False

    def make(self) -> Method:
        return Independent()


class TestDML(GraphMethodCase):
    bad_arguments = ({"weight": -1.0}, {"reduction": "sum"}, {"nodes": "some"}, *TEMPERATURE)
    refuses_unequal_depths = False

    def make(self) -> Method:
        return DML()


class TestDMLWithoutDetaching(TestDML):
    def make(self) -> Method:
        return DML(detach=False, temperature=1.0, nodes="all")


class TestKDCL(GraphMethodCase):
    bad_arguments = ({"weight": -1.0}, {"teacher": "mean"}, {"reduction": "sum"}, *TEMPERATURE)
    refuses_several_labels = True
    refuses_unequal_depths = False

    def make(self) -> Method:
        return KDCL()


class TestKDCLMinLogit(TestKDCL):
    def make(self) -> Method:
        return KDCL(teacher="minlogit")


class TestONE(GraphMethodCase):
    bad_arguments = ({"weight": float("nan")}, *TEMPERATURE)

    def make(self) -> Method:
        return ONE()

    @override
    def reached_of(self, student: int) -> frozenset[str]:
        # The common first layer is shown by the first student.
        return frozenset({"logits", "hidden.0"}) if student == 0 else frozenset({"logits"})


class TestLSP(GraphMethodCase):
    reached = frozenset({"logits", "hidden.1"})
    bad_arguments = ({"weight": -1.0}, {"direction": "both"}, *STRUCTURE)

    def make(self) -> Method:
        return LSP()


class TestLSPOfAnotherKernel(TestLSP):
    def make(self) -> Method:
        return LSP(direction="teacher_student", kernel="poly", scale="auto")


class TestCodistill(GraphMethodCase):
    reached = frozenset({"logits", "hidden.1"})
    bad_arguments = ({"weight": -1.0}, {"of": "nodes"}, {"kind": "cos"}, {"edge_value": "cos"}, *TEMPERATURE)
    refuses_unequal_widths = True

    def make(self) -> Method:
        return Codistill(weight=0.01)


class TestCodistillByDivergence(TestCodistill):
    def make(self) -> Method:
        return Codistill(kind="kl")


class TestCodistillOfEdges(TestCodistill):
    def make(self) -> Method:
        return Codistill(of="edges")


class TestAlignahead(GraphMethodCase):
    reached = frozenset({"logits", "hidden.0", "hidden.1"})
    bad_arguments = ({"weight": -1.0}, *STRUCTURE)

    def make(self) -> Method:
        return Alignahead()


class TestAlignaheadOneToOne(TestAlignahead):
    def make(self) -> Method:
        return Alignahead(shift=0, kernel="rbf", scale="auto", weight=1e4)


class TestAlignaheadPP(GraphMethodCase):
    reached = frozenset({"logits", "hidden.0", "hidden.1"})
    bad_arguments = ({"structure_weight": -1.0}, {"feature_weight": -1.0}, {"aux_weight": -1.0}, *STRUCTURE)

    def make(self) -> Method:
        return AlignaheadPP(feature_weight=0.001)

    @override
    def trained_by(self, method: Method, turn: int | None) -> set[str]:
        prefixes = (f"aux.{turn}.", f"maps.{turn}_from_")
        return {name for name, _ in method.named_parameters() if name.startswith(prefixes)}


class TestAlignaheadPPWithoutWrap(TestAlignaheadPP):
    def make(self) -> Method:
        return AlignaheadPP(wrap=False, scale="auto")


class TestOAD(GraphMethodCase):
    reached = frozenset({"logits", "hidden.1"})
    bad_arguments = (
        {"kd_weight": -1.0},
        {"gan_weight": -1.0},
        {"d_weight": -1.0},
        {"reduction": "sum"},
        {"nodes": "some"},
        {"kind": "bernoulli"},
        {"features": "first"},
        {"discriminator_width": 0},
        {"final_activation": "elu"},
        {"warmup_epochs": -1},
        *TEMPERATURE,
    )
    refuses_unequal_widths = True

    def make(self) -> Method:
        return OAD()


class TestOADOfTheReleasedCode(TestOAD):
    def make(self) -> Method:
        return OAD(reduction="reference", features="activated", discriminator_width=4, kind="softmax", gan_weight=1.0)


def test_every_method_has_a_case() -> None:
    cases = [value for name, value in globals().items() if name.startswith("Test")]
    assert {type(case().make()) for case in cases} == {method_class(name) for name in METHODS}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_card_bears_the_name_in_the_table(name: str) -> None:
    assert method_class(name).card.name == name


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown method for graphs 'alignhead'; did you mean 'alignahead'"):
        method_class("alignhead")
