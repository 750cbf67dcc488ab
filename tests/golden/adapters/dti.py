"""Golden adapters of drug-target screening."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.screening.estimators._rls import rls_side
from stillroom.screening.estimators.blm_nii import blm_nii_side, combined
from stillroom.screening.estimators.cmf import cmf_fit
from stillroom.screening.estimators.nearest_profile import nearest_profile
from stillroom.screening.estimators.net_lap_rls import net_lap_rls_side
from stillroom.screening.estimators.nrlmf import nrlmf_fit, nrlmf_scores
from stillroom.screening.estimators.rls_kron import rls_kron
from stillroom.screening.estimators.weighted_profile import weighted_profile
from stillroom.screening.estimators.wnn_gip import wnn_gip
from stillroom.screening.kernels.algebra import pairwise_kernel
from stillroom.screening.kernels.gip import gip_kernel
from stillroom.screening.metrics import auc, aupr
from stillroom.screening.protocols import Setting, make_folds

SYSTEM = "dti"

Arrays = Mapping[str, NDArray[Any]]


def numbers(case: Any) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in case.inputs.items()}


def tensors(**arrays: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def symmetric(arrays: Arrays) -> list[NDArray[Any]]:
    """The released methods symmetrise first; so do the estimators, before the functions are called."""
    return [(arrays[f"{side}_similarity"] + arrays[f"{side}_similarity"].T) / 2 for side in ("drug", "target")]


def gip(case: Any) -> dict[str, Tensor]:
    labels, gamma = numbers(case)["interactions"], case.hyperparameters["gamma"]
    return tensors(drug_kernel=gip_kernel(labels, gamma=gamma), target_kernel=gip_kernel(labels.T, gamma=gamma))


def blm_nii(case: Any) -> dict[str, Tensor]:
    given, about = numbers(case), case.hyperparameters
    labels, (drugs, targets) = given["interactions"], symmetric(given)
    options = {name: about[name] for name in ("alpha", "gamma", "sigma")}
    by_drug = blm_nii_side(labels, drugs, psd="none", **options)
    by_target = blm_nii_side(labels.T, targets, psd="none", **options).T
    return tensors(drug_side=by_drug, target_side=by_target, scores=combined(by_drug, by_target, about["combine"]))


def kron(case: Any) -> dict[str, Tensor]:
    given, sigma = numbers(case), case.hyperparameters["sigma"]
    drugs, targets, labels = given["drug_kernel"], given["target_kernel"], given["interactions"]
    return tensors(
        scores=rls_kron(drugs, targets, labels, sigma=sigma),
        drug_side=rls_side(drugs, labels, sigma=sigma),
        target_side=rls_side(targets, labels.T, sigma=sigma).T,
    )


def weighted_neighbours(case: Any) -> dict[str, Tensor]:
    given = numbers(case)
    return tensors(**wnn_gip(given["interactions"], *symmetric(given), psd="none", **case.hyperparameters))


def laplacian(case: Any) -> dict[str, Tensor]:
    given, about = numbers(case), case.hyperparameters
    labels, (drugs, targets) = given["interactions"], symmetric(given)
    by_drug = net_lap_rls_side(labels, drugs, gamma=about["gamma_d"], beta=about["beta_d"])
    by_target = net_lap_rls_side(labels.T, targets, gamma=about["gamma_t"], beta=about["beta_t"])
    return tensors(scores=(by_drug + by_target.T) / 2)


def pairs(case: Any) -> dict[str, Tensor]:
    given = numbers(case)
    names = ("drug_kernel", "target_kernel", "pairs_a", "pairs_b")
    return tensors(kernel=pairwise_kernel(*(given[name] for name in names)))


def logistic_factors(case: Any) -> dict[str, Tensor]:
    given, about = numbers(case), case.hyperparameters
    labels, drugs, targets = given["interactions"], given["drug_similarity"], given["target_similarity"]
    seen = labels * given["mask"]
    U, V = nrlmf_fit(
        labels,
        given["mask"],
        drugs,
        targets,
        given["drug_factors_init"],
        given["target_factors_init"],
        weight_positive=about["c"],
        lambda_drug=about["lambda_d"],
        lambda_target=about["lambda_t"],
        alpha=about["alpha"],
        beta=about["beta"],
        learning_rate=about["theta"],
        neighbors=about["K1"],
        max_iter=about["max_iter"],
    )
    scores = nrlmf_scores(U, V, seen, drugs, targets, neighbors=about["K2"])
    return tensors(drug_factors=U, target_factors=V, scores=scores)


def collaborative_factors(case: Any) -> dict[str, Tensor]:
    given, about = numbers(case), case.hyperparameters
    U, V = cmf_fit(
        given["interactions"],
        given["mask"],
        given["drug_similarity"],
        given["target_similarity"],
        given["drug_factors_init"],
        given["target_factors_init"],
        weight_factors=about["lambda_l"],
        weight_drug=about["lambda_d"],
        weight_target=about["lambda_t"],
        max_iter=about["max_iter"],
    )
    return tensors(drug_factors=U, target_factors=V, scores=U @ V.T)


def profiles(case: Any) -> dict[str, Tensor]:
    given = numbers(case)
    labels, drugs = given["interactions"], given["drug_similarity"]
    return tensors(nearest_profile=nearest_profile(labels, drugs), weighted_profile=weighted_profile(labels, drugs))


def folds(case: Any) -> dict[str, Tensor]:
    about, (m, n) = case.hyperparameters, case.inputs["shape"].tolist()
    setting: Setting = "S1" if about["mode"] == "pair" else "S2"
    made = make_folds((m, n), setting, seed=about["seed"], num_folds=about["num_folds"])
    return tensors(fold=sum(number * fold.test for number, fold in enumerate(made)))


def metrics(case: Any) -> dict[str, Tensor]:
    given = numbers(case)
    return tensors(auc=auc(**given), aupr=aupr(**given))


ADAPTERS = {
    "nrlmf": logistic_factors,
    "cmf": collaborative_factors,
    "profile_baselines": profiles,
    "folds": folds,
    "metrics": metrics,
    "gip_kernel": gip,
    "blm_nii": blm_nii,
    "rls_kron": kron,
    "wnn_gip": weighted_neighbours,
    "net_lap_rls": laplacian,
    "pairwise_kernel": pairs,
}
