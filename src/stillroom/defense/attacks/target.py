"""What an attack sees of its victim: images go in, probabilities or labels come out, and every query counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, get_args

import numpy as np

from stillroom.defense.contracts import Defence, Floats, Images, Observe, Queries
from stillroom.errors import InputError, unknown_name

__all__ = ["Ask", "BudgetSpent", "Labels", "Target", "one_account"]

Labels = Literal["soft", "hard"]


class BudgetSpent(Exception):  # noqa: N818 - no error: every attack that uses up its budget ends with it
    """The queries asked for exceed what is left of the budget; none of them was made.

    Args:
        left: Queries that may still be made.
    """

    def __init__(self, left: int) -> None:
        super().__init__(f"{left} queries are left")
        self.left = left


class Ask(Protocol):
    """All that an attack knows of the victim."""

    def __call__(self, images: Images) -> Floats:
        """Return the victim's answers [B, K], rows that sum to one, to images [B, C, H, W].

        Raises:
            BudgetSpent: So many queries are not left; none was made.
        """
        ...


def one_account(query: int) -> str:
    """Name the account of any query: one thief."""
    return "thief"


class Target:
    """A victim inside this process, behind its defence, that counts what it is asked.

    Args:
        observe: The model.
        defence: What stands in front of it.
        budget: Queries that are answered, in samples.
        labels: Whether the service returns probabilities or only the class; a class comes out as a one-hot row.
        accounts: Names the account that makes the i-th query (from 0).
        request: Queries of one account that are sent together at most.
        spent: Queries that an earlier, killed run made already.

    Attributes:
        spent: Queries made.
        altered: Answers that were not the model's own.
        first_detected: Number (from 1) of the first query whose answer was altered; None while there is none.
        asked: Queries of each account.
        detected: Accounts that got an altered answer, with the number (from 1) of the account's first such query.

    Raises:
        InputError: ``budget`` or ``request`` is below 1, or ``labels`` is unknown.
    """

    def __init__(
        self,
        observe: Observe,
        defence: Defence,
        *,
        budget: int,
        labels: Labels = "soft",
        accounts: Callable[[int], str] = one_account,
        request: int = 16,
        spent: int = 0,
    ) -> None:
        for name, value in (("budget", budget), ("request", request)):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if labels not in get_args(Labels):
            raise unknown_name("kind of labels", labels, get_args(Labels))
        self.observe, self.defence, self.accounts = observe, defence, accounts
        self.budget, self.labels, self.request = budget, labels, request
        self.spent = spent
        self.altered = 0
        self.first_detected: int | None = None
        self.asked: dict[str, int] = {}
        self.detected: dict[str, int] = {}
        self._scores: list[Floats] = []

    @property
    def scores(self) -> Floats:
        """The defence's score of every query [spent], in order; NaN where none was due."""
        return np.concatenate(self._scores) if self._scores else np.empty(0)

    def ask(self, images: Images) -> Floats:
        """Return the answers [B, K] to images [B, C, H, W].

        Raises:
            BudgetSpent: So many queries are not left; none was made.
        """
        if len(images) > self.budget - self.spent:
            raise BudgetSpent(self.budget - self.spent)
        if len(images) == 0:
            raise InputError("there are no images to ask about")
        # The model looks at each image alone; only the defence has to be told one request of one account at a time.
        parts = [self.observe(images[start : start + 256]) for start in range(0, len(images), 256)]
        features = np.concatenate([part.features for part in parts])
        logits = np.concatenate([part.logits for part in parts])
        names = [self.accounts(self.spent + position) for position in range(len(images))]
        answers: list[Floats] = []
        start = 0
        while start < len(images):
            end = start + 1
            while end < len(images) and end - start < self.request and names[end] == names[start]:
                end += 1
            answers.append(
                self._request(Queries(names[start], images[start:end], features[start:end], logits[start:end]))
            )
            start = end
        found = np.concatenate(answers)
        return np.eye(found.shape[1])[found.argmax(1)] if self.labels == "hard" else found

    def _request(self, queries: Queries) -> Floats:
        probabilities, altered, scores = self.defence.answer(queries)
        before = self.asked.get(queries.account, 0)
        if altered.any():
            first = int(altered.argmax()) + 1
            self.detected.setdefault(queries.account, before + first)
            if self.first_detected is None:
                self.first_detected = self.spent + first
        self.asked[queries.account] = before + len(queries)
        self.spent += len(queries)
        self.altered += int(altered.sum())
        self._scores.append(np.asarray(scores, np.float64))
        return probabilities
