"""Training a student without data: checks, the bank of images, the loop, and what the report shows of it."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from stillroom.data.images import TensorImages
from stillroom.distillation.data_free._networks import through
from stillroom.distillation.data_free.align import AlignHead
from stillroom.distillation.data_free.auxiliary import Auxiliary
from stillroom.distillation.data_free.bank import Bank
from stillroom.distillation.data_free.bn_statistics import BNStatistics
from stillroom.distillation.data_free.cmi import CMI
from stillroom.distillation.data_free.csd import CSD
from stillroom.distillation.data_free.dafl import DAFL
from stillroom.distillation.data_free.deepinversion import DeepInversion
from stillroom.distillation.data_free.generating import GeneratorLoader
from stillroom.distillation.data_free.generator import Generator, reinitialise
from stillroom.distillation.data_free.head import AuxiliaryHead
from stillroom.distillation.data_free.inverting import BankLoader, Studio
from stillroom.distillation.data_free.player import Player
from stillroom.distillation.data_free.report import confidence, curves, pictures
from stillroom.distillation.data_free.task import DataFreeTask
from stillroom.distillation.data_free.views import Views
from stillroom.distillation.data_free.zskt import ZSKT
from stillroom.distillation.networks import Network, tap, twin
from stillroom.distillation.training import Setting, Trained
from stillroom.errors import InputError
from stillroom.models._trace import evaluating
from stillroom.models.store import weights_hash
from stillroom.training.loop import fit
from stillroom.training.run import RunDirectory
from stillroom.training.teacher import LiveTeacher, match_classes

__all__ = ["as_teacher_sees", "rehearse_data_free", "train_data_free"]

Method = CSD | CMI | DeepInversion | DAFL | ZSKT

_SHOWN = 100  # images of a generator in the report


def as_teacher_sees(setting: Setting, teacher: Network) -> Setting:
    """Return the setting with the teacher's normalisation in place of the data's, which nobody knows without data.

    A student trained without data expects it too; evaluate it with this setting. A held-out part of the training
    images is left out: it is training data.
    """
    data = replace(setting.data, mean=teacher.card.mean, std=teacher.card.std, holdout=None)
    return replace(setting, data=data)


def rehearse_data_free(student: Network, teacher: Network, method: Method, setting: Setting) -> None:
    """Refuse what cannot work, before anything is trained or written. No training image is read.

    Args:
        student: What will be trained; it is left as it is.
        teacher: The trained network.
        method: CSD, CMI, DeepInversion, DAFL or ZSKT.
        setting: The run's; recipe.epochs counts rounds.

    Raises:
        InputError: The teacher has no BatchNorm statistics and the method needs them, the images are not square or of
            a side not divisible by 4, classes or shapes do not fit, or the bank cannot fill a batch.
    """
    _task(twin(student), twin(teacher), method, setting)
    if not isinstance(method, DAFL | ZSKT):
        first = (min(method.initial_rounds, method.bank_rounds - 1) + 1) * method.synthesis_batch
        if first < setting.recipe.batch_size:
            raise InputError(
                f"the bank holds {first} images in the first round and a batch takes {setting.recipe.batch_size}; "
                "raise synthesis_batch or initial_rounds, or lower --recipe.batch_size"
            )


def train_data_free(student: Network, teacher: Network, method: Method, setting: Setting, run: RunDirectory) -> Trained:
    """Train a student from a teacher's weights alone.

    ``setting.data`` gives class names, shape, what augmentation suits the images, and test images to measure the
    student with; its training images are never read. The deployed network expects the teacher's normalisation, see
    :func:`as_teacher_sees`.

    Args:
        student: Trained in place.
        teacher: The trained network; it is left as it is.
        method: CSD, CMI, DeepInversion, DAFL or ZSKT.
        setting: The run's; recipe.epochs counts rounds.
        run: Where the bank of images, checkpoints and metrics go.

    Raises:
        InputError: As :func:`rehearse_data_free`; or the bank on disk is damaged or belongs to another run.
    """
    setting = as_teacher_sees(setting, teacher)
    identity = {
        "method": {"name": method.card.name, **asdict(method)},
        "recipe": asdict(setting.recipe),
        "seed": setting.seed,
        "teacher": weights_hash(teacher.model),
        "student": weights_hash(student.model),
        "augment": setting.data.augment,
    }
    task = _task(student, twin(teacher), method, setting)
    device = setting.fabric.device
    views = Views(setting.data.mean, setting.data.std, setting.data.augment, device)
    batch_size, rounds = setting.recipe.batch_size, setting.recipe.epochs
    loader: BankLoader | GeneratorLoader
    if not isinstance(method, DAFL | ZSKT):
        bank = Bank(run.path / "bank", limit=method.bank_rounds, identity=identity, resume=setting.resume)
        studio = Studio(
            method,
            task,
            bank,
            views,
            shape=setting.data.shape,
            classes=len(setting.data.classes),
            seed=setting.seed,
            device=device,
            show=setting.show_progress,
        )
        studio.fill()
        loader = BankLoader(studio, batch_size=batch_size, augment=setting.data.augment)
    else:
        loader = GeneratorLoader(method, task, views, batch_size=batch_size, seed=setting.seed, device=device)
    history = fit(
        task,
        loader,
        setting.recipe,
        seed=setting.seed,
        run=run,
        fabric=setting.fabric,
        evaluate=setting.evaluate(),
        eval_every=setting.eval_every,
        resume=setting.resume,
        compile=setting.compile,
        checkpoint_every=setting.checkpoint_every,
        step=task.step,
        label=f"student, {method.card.name}",
        show_progress=setting.show_progress,
        tensorboard=setting.tensorboard,
    )
    if isinstance(loader, BankLoader):
        newest = loader.studio.method.initial_rounds + rounds
        last = bank[newest]
        shown = TensorImages(last.images, last.target)
        measured = {
            "images_synthesised": newest * loader.studio.method.synthesis_batch,
            "synthesis_seconds": last.seconds,
            "bank_bytes": bank.num_bytes,
        }
    else:
        shown = _drawn(loader, task, views, rounds)
        steps = rounds * len(loader)
        plays = rounds * -(-len(loader) // loader.method.kd_steps) * loader.method.g_steps
        measured = {"images_synthesised": steps * batch_size + plays * loader.method.synthesis_batch, "bank_bytes": 0}
    sure, hits = confidence(task.teacher, shown, views, device)
    measured |= {"teacher_confidence": sure, "teacher_agreement": hits}
    model = task.student.release().eval()
    card = replace(student.card, mean=teacher.card.mean, std=teacher.card.std)
    sections = (pictures(shown, setting.data.classes, sure, hits), *curves(history))
    notes = ("No real image was used for training; the test images are real and were only measured on.",)
    return Trained(replace(student, model=model, card=card), history, measured, sections=sections, notes=notes)


def _task(student: Network, teacher: Network, method: Method, setting: Setting) -> DataFreeTask:
    data, device, name = setting.data, setting.fabric.device, method.card.name
    if setting.fabric.world_size > 1:
        raise InputError(f"{name} makes its images in one process; start it without torchrun")
    if teacher.card.input_shape != data.shape:
        raise InputError(
            f"the teacher takes images of shape {list(teacher.card.input_shape)} and {data.name} has "
            f"{list(data.shape)}; name data of the teacher's shape, or set data.image_size"
        )
    channels, height, width = data.shape
    if height != width:
        raise InputError(f"{name} makes square images and {data.name} has {height}×{width}; set data.image_size")
    if not isinstance(method, DAFL | ZSKT):
        BNStatistics(teacher.model, name)  # refuses a teacher that has none
    wanted = {"stages"} if method.feature_weight > 0 else set()
    pooled = {"pooled"} if method.customises else set()
    reads = {"pooled"} if isinstance(method, DAFL) else set()
    class_map = match_classes(teacher.card.classes, data.classes)
    live = LiveTeacher(tap(teacher, frozenset(wanted | reads)), class_map=class_map).to(device)
    tapped = tap(student, frozenset(wanted | pooled)).to(device)
    sample = torch.zeros(2, *data.shape, device=device)
    with evaluating(tapped), evaluating(live.model):
        says, answers = through(live, sample), tapped(sample)
    if says.logits.shape != answers.logits.shape:
        raise InputError(
            f"teacher and student answer for different numbers of classes ({says.logits.shape[1]} and "
            f"{answers.logits.shape[1]}); take a student with the teacher's classes"
        )
    # Helpers start alike whatever was drawn before.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(setting.seed)
        align = auxiliary = player = None
        if wanted:
            align = AlignHead(answers.stages[-1].shape[1], says.stages[-1].shape[1]).to(device)
        if isinstance(method, CSD) and method.customises:
            assert answers.pooled is not None
            head = AuxiliaryHead(answers.pooled.shape[1], len(data.classes), normalize=method.normalize_head)
            reinitialise(head, torch.default_generator)
            auxiliary = Auxiliary(head.to(device), lr=method.lr_head)
        if isinstance(method, DAFL | ZSKT):
            generator = Generator(latent=method.latent, size=height, channels=channels, width=method.width)
            reinitialise(generator, torch.default_generator)
            player = Player(generator.to(device).to(memory_format=torch.channels_last), lr=method.lr_g)
        elif not isinstance(method, DeepInversion):
            Generator(latent=1, size=height, channels=channels, width=1)  # refuses sizes it cannot make
    return DataFreeTask(
        tapped,
        live,
        temperature=method.temperature,
        feature_weight=method.feature_weight,
        uses_labels=method.uses_labels,
        align=align,
        auxiliary=auxiliary,
        player=player,
    )


def _drawn(loader: GeneratorLoader, task: DataFreeTask, views: Views, rounds: int) -> TensorImages:
    images = loader.images(_SHOWN, rounds + 1, 0)
    with torch.no_grad():
        target = through(task.teacher, views.normalise(images)).logits.argmax(1)
    return TensorImages((images * 255).round().to(torch.uint8).cpu(), target.cpu())
