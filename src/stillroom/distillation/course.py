"""How a student is trained under a method of any family: rehearsed first, then for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stillroom.distillation.cache import cached_teacher
from stillroom.distillation.data_free.training import rehearse_data_free, train_data_free
from stillroom.distillation.methods import Family, family_of
from stillroom.distillation.multi_teacher.training import Master, head_of, rehearse_many, train_from_many
from stillroom.distillation.networks import Network, cacheable, live_teacher, twin
from stillroom.distillation.offline._method import Weights
from stillroom.distillation.online.training import rehearse_online, train_online
from stillroom.distillation.training import Setting, Trained, rehearse, train_distilled
from stillroom.errors import InputError
from stillroom.training.contracts import Teacher
from stillroom.training.run import RunDirectory
from stillroom.training.teacher import Precision, match_classes
from stillroom.training.teacher_cache import cacheable_views, check_cacheable

__all__ = ["Course", "check_teachers"]


@dataclass(frozen=True, kw_only=True)
class Course:
    """A method, its setting and how it meets the networks.

    Args:
        method: Of any family but translation; a copy of it is trained.
        setting: Data, recipe, seed, devices.
        weights: Weights of the objective, for offline methods.
        temperature: Temperature of the KD term beside an offline method's own.
        teacher_precision: Number format the teachers are computed in.
        teacher_cache: Folder of the teachers' answers; none keeps them live.
        label_map: Student class name -> teacher class name.
        branch: Where peers of an online method part, see :func:`~stillroom.distillation.online.training.train_online`.
    """

    method: Any
    setting: Setting
    weights: Weights | None = None
    temperature: float = 4.0
    teacher_precision: Precision = "32"
    teacher_cache: Path | None = None
    label_map: Mapping[str, str] | None = None
    branch: str | None = "auto"

    @property
    def family(self) -> Family:
        """The method's family."""
        return family_of(self.method.card.name)

    def rehearse(self, students: Sequence[Network], teachers: Sequence[Network]) -> None:
        """Refuse what cannot work, before anything is trained or written. No network is changed.

        Args:
            students: The student; for online methods all peers, the one to deploy first.
            teachers: One, several or none, trained or not.

        Raises:
            InputError: The method cannot work for these networks, this batch size or this cache.
        """
        teachers = [twin(teacher) for teacher in teachers]
        if self.family == "online":
            rehearse_online(students, self.method, self.setting, branch=self.branch)
            return
        if self.teacher_cache is not None:
            if self.family == "data_free":
                raise InputError(f"{self.method.card.name} shows its teachers new images; leave teacher_cache out")
            cacheable_views(self.setting.views, self.setting.data.augment)
            check_cacheable(self.method.signals)
        (student,) = students
        live = replace(self, teacher_cache=None)
        if self.family == "data_free":
            self._check_same_classes(teachers[0])
            rehearse_data_free(student, teachers[0], self.method, self.setting)
        elif self.family == "multi_teacher":
            rehearse_many(student, live._masters(teachers), self.method, self.setting)
        else:
            says, classifier = live._teacher(teachers[0])
            rehearse(
                student,
                says,
                self.method,
                self._weights(),
                self.setting,
                teacher_classifier=classifier,
                temperature=self.temperature,
            )

    def train(self, students: Sequence[Network], teachers: Sequence[Network], run: RunDirectory) -> Trained:
        """Train the student and return what is deployed; arguments as in :meth:`rehearse`, the teachers trained."""
        if self.family == "online":
            return train_online(students, self.method, self.setting, run, branch=self.branch)
        (student,) = students
        if self.family == "data_free":
            return train_data_free(student, teachers[0], self.method, self.setting, run)
        if self.family == "multi_teacher":
            return train_from_many(student, self._masters(teachers), self.method, self.setting, run)
        says, classifier = self._teacher(teachers[0])
        return train_distilled(
            student,
            says,
            self.method,
            self._weights(),
            self.setting,
            run,
            teacher_classifier=classifier,
            temperature=self.temperature,
        )

    def _weights(self) -> Weights:
        assert self.weights is not None  # offline methods are always given some
        return self.weights

    def _teacher(self, network: Network) -> tuple[Teacher, torch.nn.Linear | None]:
        """Return the live or cached teacher and its classifier."""
        needs = self.method.signals
        live, classifier = live_teacher(
            network,
            self.setting.data,
            signals=needs if self.teacher_cache is None else cacheable(network, needs),
            device=self.setting.fabric.device,
            precision=self.teacher_precision,
            label_map=self.label_map,
        )
        if self.teacher_cache is None:
            return live, classifier
        return cached_teacher(live, self.setting, self.teacher_cache, needs=needs), classifier

    def _masters(self, networks: Sequence[Network]) -> list[Master]:
        masters = []
        for number, network in enumerate(networks, start=1):
            head = None
            if self.method.needs_heads:
                device = self.setting.fabric.device
                head = head_of(network, self.setting.data, device=device, label_map=self.label_map)
            masters.append(Master(f"teacher {number} ({network.name})", self._teacher(network)[0], head))
        return masters

    def _check_same_classes(self, teacher: Network) -> None:
        if match_classes(teacher.card.classes, self.setting.data.classes, self.label_map) is not None:
            raise InputError(
                f"{self.method.card.name} trains a student for the teacher's own {len(teacher.card.classes)} classes; "
                "the data to test it on must have the same ones in the same order"
            )


def check_teachers(method: Any, count: int) -> None:
    """Refuse more or fewer teachers than a method learns from.

    Raises:
        InputError: It does.
    """
    name, family = method.card.name, family_of(method.card.name)
    if family == "online" and count:
        raise InputError(f"{name} trains peers that teach each other; leave teacher out")
    if family == "multi_teacher" and count < 1:
        raise InputError(f"{name} learns from several teachers; name them, e.g. --teacher resnet20 --teacher resnet14")
    if family in ("offline", "data_free") and count != 1:
        more = "; for several take camkd, mmkd, aekd, ebkd, aver or fitnet_mkd" if count else ""
        raise InputError(f"{name} learns from one teacher, not {count}{more}")
