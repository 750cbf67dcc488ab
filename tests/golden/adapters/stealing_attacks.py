"""Golden adapters of the attacks: rewards and policy, perturbations, estimated gradients, disagreement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.defense.attacks.dfme import discrepancy, reconstruct_logits
from stillroom.defense.attacks.disguide import disagreement_loss
from stillroom.defense.attacks.forward_differences import forward_differences
from stillroom.defense.attacks.jbda import fgsm_perturbation, jacobian_augment, targeted_perturbation
from stillroom.defense.attacks.maze import negative_kl
from stillroom.defense.attacks.rewards import Bandit, Rewards, certainty, diversity, imitation_loss

SYSTEM = "stealing-attacks"


def linear(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda images: images.flatten(1).tanh() @ weight.to(images.dtype) + bias.to(images.dtype)


def models(case: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    found = case.inputs
    return (
        linear(found["param.victim_w"], found["param.victim_b"]),
        linear(found["param.clone_w"], found["param.clone_b"]),
    )


def dfme_gradient(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    victim, clone = models(case)
    points, directions = case.inputs["pre_activation"], case.inputs["directions"]
    assert (options["activation"], options["m"]) == ("tanh", directions.shape[1])

    def losses(pre_activation: Tensor) -> Tensor:
        images = pre_activation.tanh()
        logits = victim(images)
        if options["logit_correction"] != "none":
            logits = reconstruct_logits(logits.softmax(1), correction=options["logit_correction"])
        return -discrepancy(clone(images), logits, kind=options["loss"])

    estimate, at_points = forward_differences(points, losses, directions.to(points.dtype), epsilon=options["epsilon"])
    if options["loss"] == "l1":
        estimate = estimate / (options["num_classes"] * len(points))
    return {"gradient": estimate, "loss": at_points.mean()}


def maze_gradient(case: Any) -> dict[str, Tensor]:
    victim, clone = models(case)
    points, directions = case.inputs["pre_activation"].requires_grad_(), case.inputs["directions"]
    assert case.hyperparameters["ndirs"] == directions.shape[1]

    def losses(pre_activation: Tensor) -> Tensor:
        images = pre_activation.tanh()
        return negative_kl(clone(images), victim(images).softmax(1))

    estimate, _ = forward_differences(points.detach(), losses, directions, epsilon=case.hyperparameters["mu"])
    estimate = estimate / len(points)
    loss = losses(points).mean()
    (true,) = torch.autograd.grad(loss, points)
    flat, reference = estimate.flatten(1), true.flatten(1)
    return {
        "gradient": estimate,
        "loss": loss,
        "cosine": torch.cosine_similarity(reference, flat, dim=1).mean(),
        "magnitude_ratio": (flat.norm(dim=1) / reference.norm(dim=1)).mean(),
    }


def disguide_generator_loss(case: Any) -> dict[str, Tensor]:
    logits = case.inputs["logits"].requires_grad_()
    loss = disagreement_loss(logits, weight_diversity=case.hyperparameters["lambda_div"], eps=0.0)
    loss.backward()
    return {"loss": loss, "grad.logits": logits.grad}


def jbda_augment(case: Any) -> dict[str, Tensor]:
    found, options = case.inputs, case.hyperparameters
    model = linear(found["param.w"], found["param.b"])
    span = (options["clip_min"], options["clip_max"])
    return {"augmented": jacobian_augment(model, found["x"], found["labels"], step=options["step"], span=span)}


def jbda_perturbations(case: Any) -> dict[str, Tensor]:
    found, options = case.inputs, case.hyperparameters
    model = linear(found["param.w"], found["param.b"])
    target = torch.full_like(found["labels"], options["target"])
    return {
        "delta_fgsm": fgsm_perturbation(model, found["x"], found["labels"], epsilon=options["epsilon"]),
        "delta_targeted": targeted_perturbation(
            model,
            found["x"],
            target,
            epsilon=options["epsilon"],
            alpha=options["alpha"],
            steps=options["steps"],
            clip=False,
        ),
    }


def knockoff_rewards(case: Any) -> dict[str, Tensor]:
    victim, clone = case.inputs["victim"].numpy(), case.inputs["clone"].numpy()
    options = case.hyperparameters
    again = np.exp(clone) / np.exp(clone).sum(1, keepdims=True)
    of_softmaxed = imitation_loss(np.exp(victim) / np.exp(victim).sum(1, keepdims=True), again)
    parts = {
        "certainty": certainty(victim),
        "diversity": diversity(victim, victim.cumsum(0) / np.arange(1, len(victim) + 1)[:, None]),
        "loss": imitation_loss(victim, clone),
        "loss_of_softmaxed": of_softmaxed,
    }
    rewards = Rewards("all")
    parts["all_of_softmaxed"] = np.array(
        [
            rewards.standardise(np.array(row))
            for row in zip(parts["certainty"], parts["diversity"], of_softmaxed, strict=True)
        ]
    )
    bandit = Bandit(options["num_actions"])
    policy = []
    for action, reward in zip(case.inputs["actions"].tolist(), parts[options["policy_reward"]], strict=True):
        bandit.reward(action, float(reward))
        policy.append(bandit.policy())
    return {name: torch.from_numpy(value) for name, value in parts.items()} | {
        "policy": torch.from_numpy(np.stack(policy))
    }


ADAPTERS = {
    "dfme_gradient": dfme_gradient,
    "maze_gradient": maze_gradient,
    "disguide_generator_loss": disguide_generator_loss,
    "jbda_augment": jbda_augment,
    "jbda_perturbations": jbda_perturbations,
    "knockoff_rewards": knockoff_rewards,
}
