"""Write a page for every method, and the table of methods in the README, from the classes and their cards.

    python docs/generate.py            writes what changed and names it
    python docs/generate.py --check    writes nothing; exits with 1 if anything would change

Which pairs of networks a method works for is tried out here, not asserted: its adapters are built and its loss computed
for each pair, and where it refuses, the page quotes what it says.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from stillroom.data.batch import Batch
from stillroom.defense import methods as guarding
from stillroom.distillation.methods import FAMILIES, METHODS, AnyMethod, family_of, method_class
from stillroom.distillation.offline._method import DryRun, Method
from stillroom.errors import InputError
from stillroom.graphs import methods as graphs
from stillroom.hyperparameters import method_defaults
from stillroom.models.create import create_model
from stillroom.models.signals import Signals
from stillroom.models.taps import SIGNALS, Tapped, find_taps
from stillroom.screening import methods as screening

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- methods: begin, written by docs/generate.py -->", "<!-- methods: end -->"
NOTICE = "<!-- Written by docs/generate.py from the class and its card; edit those. -->"

STANDING = {
    "verified": "agrees with the released code on golden numbers",
    "derived": "written from the published equations, not compared with released code",
    "reconstructed": "rebuilt from an abstract; neither code nor the full equations were at hand",
}
READS = {
    "stages": "feature maps of the stages",
    "preact": "the maps before their last activation, where the architecture defines them",
    "pooled": "the pooled vector (input of the last linear layer)",
}
PAIRS = (  # student, teacher, what the pair stands for
    ("resnet8", "resnet20", "one family"),
    ("resnet8x4", "resnet32x4", "one family, the literature's pair"),
    ("resnet20", "resnet20_a", "a teacher without projections"),
    ("shufflenet_v2", "resnet32x4", "another architecture"),
    ("vgg8", "resnet32x4", "another number of stages and other sizes"),
    ("resnet8", "wrn_40_2", "a pre-activation teacher"),
    ("resnet8", "mobilenetv2", "a teacher with a convolution behind its last stage"),
    ("timm:vit_tiny_patch16_224", "resnet20", "a transformer learns from a CNN"),
    ("resnet8", "timm:vit_tiny_patch16_224", "a CNN learns from a transformer"),
)
CLASSES, BATCH, SAMPLES = 10, 16, 64
# Their weights and the recipe for small data can diverge without it.
ALSO = {"semckd": "--recipe.clip_norm 5 ", "cc": "--recipe.clip_norm 5 "}
QUICK = "--recipe.epochs 1 --no_baseline"
# Small numbers for methods whose paper means hours.
BRIEFLY = " --method.kd_steps 5 --method.g_steps 5 --method.synthesis_batch 64"
SMALL = {
    "csd": f"{BRIEFLY} --method.initial_rounds 1 --method.initial_g_steps 5",
    "cmi": f"{BRIEFLY} --method.memory 64 --method.negatives 16",
    "deepinversion": BRIEFLY,
    "dafl": " --method.ep_steps 5 --method.synthesis_batch 64",
    "zskt": " --method.ep_steps 5 --method.synthesis_batch 64",
}
# A command of a few seconds for a method of each family, and the guide that says more.
COMMANDS = {
    "online": f"--peers 3 --data.fraction 0.2 {QUICK}",
    "multi_teacher": f"--teacher resnet8 --teacher resnet14 --data.fraction 0.2 {QUICK}",
    "data_free": "--teacher resnet8 --data.fraction 0.2 --recipe.epochs 1",
    "translation": (
        "--pairs.count 8 --pairs.validation 2 --pairs.epochs 1 --recipe.epochs 2 --eval_every 2 --steps 0,1"
    ),
}
GUIDES = {
    "online": "online",
    "multi_teacher": "multi-teacher",
    "data_free": "data-free",
    "translation": "translation",
}
# What the methods for graphs are made of, for a loop of one's own.
GRAPH_FUNCTIONS = (
    "structure:edge_kernel",
    "structure:local_structure",
    "structure:structure_kl",
    "structure:lsp_loss",
    "online.alignahead:alignahead_loss",
    "online.alignahead_pp:alignahead_pp_loss",
    "online.agreement:prediction_kl",
    "online.agreement:mean_of_others_loss",
    "online.dml:dml_loss",
    "online.kdcl:kdcl_loss",
    "online.codistill:feature_codistill_loss",
    "online.codistill:edge_codistill_loss",
    "online.oad:discriminator_loss",
    "online.oad:adversarial_loss",
)
# What screening is made of besides its methods.
SCREENING_FUNCTIONS = (
    "kernels.chemical:tanimoto_kernel",
    "kernels.genomic:smith_waterman_kernel",
    "kernels.genomic:spectrum_kernel",
    "kernels.genomic:mismatch_kernel",
    "kernels.gip:gip_kernel",
    "kernels.algebra:psd_repaired",
    "kernels.algebra:centre_kernel",
    "kernels.algebra:normalise_kernel",
    "kernels.algebra:combine_kernels",
    "kernels.algebra:pairwise_kernel",
    "kernels.algebra:kron_apply",
    "protocols:make_folds",
    "leaks:identical",
    "metrics:measure",
    "cross_validation:cross_validate",
)
KINDS = {
    "offline": "one trained teacher",
    "online": "peers, no teacher",
    "multi_teacher": "several teachers",
    "data_free": "a teacher, no data",
    "translation": "weights to weights",
}


def prose(text: str) -> str:
    """Turn the words of a docstring into Markdown: roles and double backquotes, and ``::`` blocks fenced."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    parts: list[str] = []
    for paragraph in re.split(r"\n\n+", text.strip("\n")):
        if parts and parts[-1].endswith("::") and paragraph.startswith("    "):
            parts[-1] = parts[-1][:-1]
            parts.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
        elif parts and parts[-1].endswith("```") and paragraph.startswith("    "):
            parts[-1] = f"{parts[-1][:-4]}\n\n{inspect.cleandoc(paragraph)}\n```"
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)


def sections(documented: Any) -> dict[str, str]:
    """Split a docstring at ``Args:``, ``Shapes:`` and so on; what stands before them is under an empty name."""
    text = inspect.getdoc(documented) or ""
    pieces = re.split(r"^(Args|Shapes|Returns|Raises|Example):\n", text, flags=re.MULTILINE)
    return {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


def arguments(documented: Any) -> dict[str, str]:
    """Return what a docstring says about each argument, in one line each."""
    listed = inspect.cleandoc("\n" + sections(documented).get("Args", ""))
    found = re.findall(r"^(\w+): (.*(?:\n +.*)*)", listed, flags=re.MULTILINE)
    return {name: prose(" ".join(meaning.split())) for name, meaning in found}


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


@cache
def says(name: str) -> tuple[Signals, nn.Linear | None]:
    """Return all signals of a network with fresh weights on a batch of small pictures, and its classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.rand(BATCH, 3, 32, 32)
        net = create_model(name, num_classes=CLASSES, in_channels=3, image_size=32)
    paths = find_taps(net, images)
    wanted = set(SIGNALS) - (set() if paths.preact else {"preact"})
    with torch.no_grad():
        signals = Tapped(net.eval(), paths, wanted)(images)
    return signals, net.get_submodule(paths.classifier) if paths.classifier else None  # type: ignore[return-value]


def refusal(kind: type[Method], student: str, teacher: str) -> str:
    """Build the method for a pair and compute its loss; return what it says against it, or nothing."""
    (learns, _), (teaches, classifier) = says(student), says(teacher)
    target = torch.arange(SAMPLES) % CLASSES
    method = kind()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            method.build(
                DryRun(
                    student=learns,
                    teacher=teaches,
                    teacher_classifier=classifier,
                    train_target=target,
                    num_classes=CLASSES,
                    batch_size=BATCH,
                    seed=0,
                )
            )
            images = torch.zeros(BATCH, 3, 32, 32)
            method(learns, teaches, Batch(images, target[:BATCH], torch.arange(BATCH)))
        except InputError as error:
            return str(error)
    return ""


def pairs(kind: type[Method]) -> str:
    """Return which pairs work and what is said about the others."""
    works, refused = [], []
    for student, teacher, what in PAIRS:
        pair = f"{student} ← {teacher} ({what})"
        against = refusal(kind, student, teacher)
        if against:
            refused.append(f"- {pair}: “{against}”")
        else:
            works.append(f"- {pair}")
    text = "Tried on 32×32 pictures. Works for:\n\n" + "\n".join(works)
    return text + ("\n\nRefuses:\n\n" + "\n".join(refused) if refused else "")


def public(module: ModuleType, kind: type[AnyMethod]) -> Iterator[tuple[str, Any]]:
    """Yield what a method's file offers beside the method: functions (those it refers to as well), then modules."""
    listed = {name: getattr(module, name) for name in module.__all__ if name != kind.__name__}
    shown = {name: thing for name, thing in listed.items() if inspect.isfunction(thing) or _is_module(thing)}
    words = " ".join(inspect.getdoc(thing) or "" for thing in (kind, *shown.values()))
    for name in dict.fromkeys(re.findall(r":func:`stillroom\.losses\.(\w+)`", words)):
        shown[name] = getattr(import_module("stillroom.losses"), name)
    yield from sorted(shown.items(), key=lambda item: not inspect.isfunction(item[1]))


def _is_module(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, nn.Module)


def losses(module: ModuleType, kind: type[AnyMethod]) -> str:
    """Describe the functions and modules of a method's file."""
    parts = []
    for name, thing in public(module, kind):
        said = sections(thing)
        call = f"from {thing.__module__} import {name}\n{name}{_signature(thing)}"
        part = f"### {name}\n\n```text\n{call}\n```\n\n{prose(said[''])}"
        meanings = [f"- `{argument}`: {meaning}" for argument, meaning in arguments(thing).items()]
        if meanings:
            part += "\n\n" + "\n".join(meanings)
        if "Shapes" in said:
            part += "\n\nShapes: " + prose(" ".join(said["Shapes"].split()))
        parts.append(part)
    return "\n\n".join(parts)


def _signature(thing: Any) -> str:
    signature = inspect.signature(thing)
    if any(
        p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()
    ):  # a class without a constructor of its own
        return "()"
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def loop(module: ModuleType, kind: type[Method]) -> str:
    """Show the method in a hand-written loop: whole for losses of logits, by reference for those with adapters."""
    name = f"{kind.__name__}Loss"
    if kind.signals:
        return (
            f"```python\nfrom {module.__name__} import {kind.__name__}\n\nmethod = {kind.__name__}()\n```\n\n"
            "[Any method in your own loop](../guide/loop.md#any-method) builds its adapters and trains with it."
        )
    weights = kind.presets["simkd"]
    criterion = getattr(module, name)
    labels = ", target" if "target" in inspect.signature(criterion.forward).parameters else ""
    own = "" if weights.method == 1 else f"{weights.method:g} * "
    return f"""```python
import torch
from torch.nn.functional import cross_entropy

from {module.__name__} import {name}

criterion = {name}()
student_logits = torch.randn(64, 10, requires_grad=True)  # what your student says
teacher_logits = torch.randn(64, 10)  # what your teacher says, under torch.no_grad()
target = torch.randint(10, (64,))
loss = cross_entropy(student_logits, target) + {own}criterion(student_logits, teacher_logits{labels})
loss.backward()
```

[More about losses in your own loop](../guide/loop.md)."""


def offline(kind: type[Method], module: ModuleType) -> list[str]:
    """Return what only the page of an offline method holds: weights, what it reads, pairs, commands, loop."""
    name = kind.card.name
    weights = [(f"`--weights {c}`", f"{w.ce:g}", f"{w.kd:g}", f"{w.method:g}") for c, w in kind.presets.items()]
    parts = [
        "## Weights of the objective",
        "`L = ce · CE + kd · KD + method · own term`; `--temperature` is that of the KD term.",
        table(("convention", "ce", "kd", "method"), weights),
    ]
    if kind().warmup_epochs:
        parts.append(f"The own term grows linearly to its full weight over the first {kind().warmup_epochs} epochs.")
    reads = ["the logits", *(READS[signal] for signal in SIGNALS if signal in kind.signals)]
    cached = "can serve it" if kind.signals <= {"pooled"} else "holds no feature maps and cannot serve it"
    parts += [
        "## What it reads",
        f"Of both networks: {'; '.join(reads)}. A [teacher cache](../guide/distill.md#teacher-cache-and-views) "
        f"{cached}.",
        "## Which pairs",
        pairs(kind),
        "## On the command line",
        f"```bash\nstillroom distill --method {name} {ALSO.get(name, '')}{QUICK} --out runs/{name}\n```",
        "## In your own loop",
        loop(module, kind),
    ]
    return parts


def page(name: str) -> str:
    """Return the page of one method."""
    kind = method_class(name)
    card, module = kind.card, import_module(kind.__module__)
    meanings = arguments(kind) | arguments(kind.__init__)
    defaults = method_defaults(kind)
    parts = [
        NOTICE,
        f"# {name}",
        card.summary,
        f"Standing: **{card.standing}**: {STANDING[card.standing]}.",
        prose(sections(kind)[""]),
    ]
    if offered := losses(module, kind):
        parts += ["## The loss", offered]
    parts.append("## Hyperparameters")
    if defaults:
        rows = [(f"`--method.{option}`", f"`{value}`", meanings[option]) for option, value in defaults.items()]
        parts.append(table(("option", "default", "meaning"), rows))
    else:
        parts.append("None.")
    if family_of(name) == "offline":
        parts += offline(kind, module)
    else:
        guide, command = GUIDES[family_of(name)], COMMANDS[family_of(name)] + SMALL.get(name, "")
        parts += [
            "## On the command line",
            f"```bash\nstillroom distill --method {name} {command} --out runs/{name}\n```",
            f"[The guide](../guide/{guide}.md) shows more.",
        ]
    if card.ledger:
        parts.append("## Ledger\n\nWhere the paper and the released code differ, and what is done here by default.")
        rows = [(q.paper, q.code, q.default + (f"; {q.option}" if q.option else "")) for q in card.ledger]
        parts.append(table(("paper", "code", "default; the other by"), rows))
    papers = [f"- {p.authors}. *{p.title}*. {p.venue}, {p.year}. {p.identifier}" for p in card.papers]
    parts += ["## Papers", "\n".join(papers)]
    return "\n\n".join(parts) + "\n"


def guarding_page() -> str:
    """Return the page of all defences against model stealing, and of the attacks they are measured with."""
    parts = [
        NOTICE,
        "# Defences against model stealing, and attacks",
        "What stands in front of a served classifier, and what it is measured with. "
        "[The guide](../guide/defense.md) shows them at work.",
    ]
    for kind, names in guarding.KINDS.items():
        parts.append(f"## {kind.capitalize()}s")
        for name in names:
            parts += [f"### {name}", *entry(guarding.method_class(name))]
    return "\n\n".join(parts) + "\n"


def entry(cls: type[Any]) -> list[str]:
    """Return what a page of several methods says of one: summary, call, equations, options, ledger, papers."""
    card, meanings = cls.card, arguments(cls)
    parts = [
        f"{card.summary} Standing: **{card.standing}**: {STANDING[card.standing]}.",
        f"```text\nfrom {cls.__module__} import {cls.__name__}\n{cls.__name__}{_signature(cls)}\n```",
        prose(sections(cls)[""]),
    ]
    if meanings:
        parts.append("\n".join(f"- `{argument}`: {meaning}" for argument, meaning in meanings.items()))
    if card.ledger:
        rows = [(q.paper, q.code, q.default + (f"; `{q.option}`" if q.option else "")) for q in card.ledger]
        parts.append(table(("paper", "code", "default; the other by"), rows))
    parts.append("\n".join(f"- {p.authors}. *{p.title}*. {p.venue}, {p.year}. {p.identifier}" for p in card.papers))
    return parts


def graphs_page() -> str:
    """Return the page of the methods for graph neural networks, and of the functions they are made of."""
    parts = [
        NOTICE,
        "# Graph neural networks that teach each other",
        "Every method trains a group of students from scratch; `stillroom graphs distill --method NAME` runs it, "
        "`--method.OPTION` sets what is listed below its call. [The guide](../guide/graphs.md) shows them at work.",
    ]
    for name in graphs.METHODS:
        parts += [f"## {name}", *entry(graphs.method_class(name))]
    parts += ["## Losses in your own loop", *functions("graphs", GRAPH_FUNCTIONS)]
    return "\n\n".join(parts) + "\n"


def screening_page() -> str:
    """Return the page of the methods for drug-target screening, and of the functions around them."""
    parts = [
        NOTICE,
        "# Drug-target interaction screening",
        "Methods are scikit-learn classifiers of pairs. `stillroom screening evaluate --methods NAME` measures one, "
        "`predict --method NAME` ranks with it, and there `--method.OPTION` sets what is listed below its call. "
        "[The guide](../guide/screening.md) shows them at work.",
    ]
    for name in screening.METHODS:
        parts += [f"## {name}", *entry(screening.method_class(name))]
    parts += ["## Kernels, folds and measures", *functions("screening", SCREENING_FUNCTIONS)]
    return "\n\n".join(parts) + "\n"


def functions(room: str, places: tuple[str, ...]) -> list[str]:
    """Describe functions of a room, each given as ``module:name``."""
    parts = []
    for place in places:
        module, _, name = place.partition(":")
        function = getattr(import_module(f"stillroom.{room}.{module}"), name)
        call = f"from {function.__module__} import {name}\n{name}{_signature(function)}"
        meanings = [f"- `{argument}`: {meaning}" for argument, meaning in arguments(function).items()]
        parts += [f"### {name}", f"```text\n{call}\n```", prose(sections(function)[""])]
        parts += ["\n".join(meanings)] if meanings else []
        if "Shapes" in (said := sections(function)):
            parts.append("Shapes: " + prose(" ".join(said["Shapes"].split())))
    return parts


def methods_table() -> str:
    """Return the table of all methods for the README."""
    rows = []
    for family, names in FAMILIES.items():
        for name in names:
            card = method_class(name).card
            link = f"[{name}](docs/methods/{name}.md)"
            rows.append((link, KINDS[family], card.papers[0].year, card.standing, card.summary))
    for name in graphs.METHODS:
        card = graphs.method_class(name).card
        link = f"[graphs:{name}](docs/methods/graphs.md#{name})"
        rows.append((link, "peers on a graph, no teacher", card.papers[0].year, card.standing, card.summary))
    for name in screening.METHODS:
        card = screening.method_class(name).card
        link = f"[screening:{name}](docs/methods/screening.md#{name})"
        rows.append((link, "known drug-target pairs", card.papers[0].year, card.standing, card.summary))
    return table(("method", "learns from", "year", "standing", "what it does"), rows)


def pages() -> dict[Path, str]:
    """Return every generated file and what it should hold."""
    readme = README.read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    written = {DOCS / "methods" / f"{name}.md": page(name) for name in METHODS}
    written[DOCS / "methods" / "defense.md"] = guarding_page()
    written[DOCS / "methods" / "graphs.md"] = graphs_page()
    written[DOCS / "methods" / "screening.md"] = screening_page()
    return {**written, README: f"{before}{BEGIN}\n{methods_table()}\n{END}{after}"}


def main() -> int:
    """Write, or with ``--check`` only compare, all generated files."""
    stale = []
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(path.relative_to(DOCS.parent))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
