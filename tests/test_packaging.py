"""The core works without any extra, and what needs an extra says so in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from stillroom.distillation.methods import FAMILIES, METHODS

ROOT = Path(__file__).resolve().parent.parent

# What the extras bring; none of it comes with the core's dependencies.
OPTIONAL = (
    *("lightning_fabric", "lightning", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "pyarrow", "datasets"),
    *("tensorboard", "PIL", "onnx", "onnxscript", "onnxruntime", "pandas", "torch_geometric", "ogb", "rdkit"),
    *("parasail",),
)

BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_core(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own that has none of the optional packages."""
    command = [sys.executable, "-c", BLOCK + textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def check(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_neither_torch_nor_anything_optional() -> None:
    heavy = ("torch", "numpy", "jsonargparse", "rich", *OPTIONAL)
    code = f"import sys, stillroom\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_help_of_the_command_imports_neither_torch_nor_anything_optional() -> None:
    heavy = ("torch", "numpy", "jsonargparse", *OPTIONAL)
    code = f"""
        from stillroom.cli.main import main
        assert main(["--help"]) == 0
        print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
    """
    done = run_core(code)
    assert "distill" in check(done)
    assert done.stderr.split() == []


def test_every_method_can_be_made_without_extras() -> None:
    code = """
        from stillroom.distillation.methods import METHODS, method_class

        print(*[method_class(name)().card.name for name in METHODS])
    """
    assert check(run_core(code)).split() == list(METHODS)


def test_every_offline_method_trains_a_step_without_extras() -> None:
    code = """
        import torch
        from stillroom.data.batch import Batch
        from stillroom.distillation.methods import FAMILIES, method_class
        from stillroom.distillation.offline.task import OfflineTask
        from stillroom.models.create import create_model
        from stillroom.models.taps import Tapped, find_taps
        from stillroom.training.teacher import LiveTeacher

        torch.manual_seed(0)
        batch = Batch(torch.rand(16, 3, 16, 16), torch.arange(16) % 4, torch.arange(16))
        for name in FAMILIES["offline"]:
            networks = [create_model(n, num_classes=4, in_channels=3, image_size=16) for n in ("resnet8", "resnet14")]
            student, teacher = (Tapped(n, find_taps(n, batch.images), method_class(name).signals) for n in networks)
            method = method_class(name)()
            task = OfflineTask.build(
                student, LiveTeacher(teacher), method, method.presets["simkd"], batch, train_target=batch.target,
                teacher_classifier=networks[1].get_submodule("linear"), num_classes=4, seed=0,
            )
            loss = task(batch)["loss"]
            loss.backward()
            assert torch.isfinite(loss), name
            deployed = method.deploy(task.student.release().eval(), student.paths, batch.images)
            assert deployed(batch.images).shape == (16, 4), name
            print(name)
    """
    assert check(run_core(code)).split() == list(FAMILIES["offline"])


def test_every_file_of_losses_and_methods_imports_without_extras() -> None:
    rooms = ("losses", "graphs/online", *(f"distillation/{name}" for name in FAMILIES))
    folders = [ROOT / "src/stillroom" / name for name in rooms]
    modules = sorted(
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for folder in folders
        for path in folder.glob("*.py")
        if path.name != "__init__.py"
    )
    code = """
        from importlib import import_module
        for name in sys.argv[1:]:
            import_module(name)
            print(name)
    """
    assert check(run_core(code, *modules)).split() == modules


def test_every_network_of_the_zoo_answers_without_extras(tmp_path: Path) -> None:
    code = """
        import torch
        from stillroom.models.store import ModelCard, load_model, save_model
        from stillroom.models.zoo import create, names

        for name in names():
            net = create(name, num_classes=4, in_channels=1).eval()
            with torch.no_grad():
                assert net(torch.zeros(1, 1, 16, 16)).shape == (1, 4), name
        card = ModelCard(
            architecture=name, num_classes=4, classes=tuple("abcd"), mean=(0.5,), std=(0.5,), input_shape=(1, 16, 16)
        )
        save_model("stored", net, card)
        print(*load_model("stored").card.classes)
    """
    assert check(run_core(code, cwd=tmp_path)).split() == list("abcd")


NEEDS_EXTRA = {
    "distill": ("scikit-learn", "vision"),
    "bench": ("scikit-learn", "vision"),
    "distill --data cifar10:cifar": ("pyarrow", "vision"),
    "distill --data hf:pictures": ("datasets", "vision"),
    "distill --data folder:pictures": ("pillow", "vision"),
    "distill --data idx:idx": ("lightning-fabric", "vision"),
    "distill --data idx:idx --student timm:resnet18": ("lightning-fabric", "vision"),
    "export stored": ("onnx", "onnx"),
    "defense fit": ("scikit-learn", "vision"),
    "graphs distill": ("torch-geometric", "graphs"),
    "graphs bench --data cora": ("torch-geometric", "graphs"),
    "screening evaluate": ("scikit-learn", "screening"),
    "screening predict --method knn": ("scikit-learn", "screening"),
    "screening tune": ("scikit-learn", "screening"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, standard output and standard error of every command, all run in one process without extras."""
    folder = tmp_path_factory.mktemp("core")
    make_inputs(folder)
    code = """
        import contextlib, io, json
        from stillroom.cli.main import main

        answers = {}
        for command in sys.argv[1:]:
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                code = main(command.split())
            answers[command] = code, out.getvalue(), err.getvalue()
        print(json.dumps(answers))
    """
    answers = json.loads(check(run_core(code, *NEEDS_EXTRA, "methods", "doctor", cwd=folder)))
    return {command: tuple(answer) for command, answer in answers.items()}


@pytest.mark.parametrize("command", NEEDS_EXTRA)
def test_what_needs_an_extra_says_which(command: str, answers: dict[str, tuple[int, str, str]]) -> None:
    code, _, said = answers[command]
    assert code == 2, said
    (line,) = said.strip().splitlines()
    package, extra = NEEDS_EXTRA[command]
    assert f"{package} is not installed; it comes with: pip install 'stillroom[{extra}]'" in line


def test_methods_and_doctor_work_without_extras(answers: dict[str, tuple[int, str, str]]) -> None:
    assert answers["methods"][0] == 0
    assert "simkd" in answers["methods"][1]
    assert answers["doctor"][0] == 0


def make_inputs(folder: Path) -> None:
    """Write one tiny data set of every kind, and a stored model."""
    import numpy as np
    from PIL import Image

    from stillroom.models.create import create_model
    from stillroom.models.store import ModelCard, save_model

    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / "pictures" / split / label).mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "pictures" / split / label / "0.png")
    (folder / "idx").mkdir()
    for kind, header, values in (
        ("images-idx3", (0x803, 4, 8, 8), np.arange(256, dtype=np.uint8)),
        ("labels-idx1", (0x801, 4), np.arange(4, dtype=np.uint8) % 2),
    ):
        for split in ("train", "t10k"):
            content = np.array(header, dtype=">i4").tobytes() + values.tobytes()
            (folder / "idx" / f"{split}-{kind}-ubyte").write_bytes(content)
    (folder / "cifar").mkdir()
    (folder / "cifar" / "train.parquet").write_bytes(b"")
    (folder / "cifar" / "test.parquet").write_bytes(b"")
    card = ModelCard(
        architecture="resnet8", num_classes=2, classes=("a", "b"), mean=(0.5,), std=(0.5,), input_shape=(1, 8, 8)
    )
    save_model(folder / "stored", create_model("resnet8", num_classes=2, in_channels=1, image_size=8), card)


def test_the_core_requires_five_packages_without_upper_pins() -> None:
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = [requirement.split(">=")[0].partition("[")[0] for requirement in core]
    assert names == ["torch", "numpy", "safetensors", "jsonargparse", "rich"]
    assert not any(sign in requirement for requirement in core for sign in ("<", "==", "~="))


def test_what_the_command_line_imports_comes_with_the_core() -> None:
    required = " ".join(distribution("jsonargparse").requires or [])
    assert "PyYAML" in required
    assert "docstring-parser" in required
    assert "jinja2" in " ".join(distribution("torch").requires or [])


def test_wheel_and_source_archive_hold_what_they_must(tmp_path: Path) -> None:
    build = (
        "import sys; from hatchling import build as b; print(*(f(sys.argv[1]) for f in (b.build_wheel, b.build_sdist)))"
    )
    command = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    wheel, source = (tmp_path / name for name in done.stdout.split()[-2:])
    inside = zipfile.ZipFile(wheel).namelist()
    pretrained = tuple(f"diffusion/pretrained/digits/{name}" for name in ("model.json", "model.safetensors"))
    templates = tuple(f"reports/templates/{name}.html" for name in ("page", "distill", "sections"))
    for name in ("py.typed", "cli/main.py", *templates, *pretrained):
        assert f"stillroom/{name}" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert all(name.startswith(("stillroom/", "stillroom-")) for name in inside)
    with tarfile.open(source) as archive:
        files = archive.getnames()
    assert any(name.endswith("src/stillroom/py.typed") for name in files)
    assert not any("/.venv" in name or "/runs/" in name for name in files)
    golden = sum(file.stat().st_size for file in (ROOT / "tests/golden/data").rglob("*") if file.is_file())
    assert source.stat().st_size < golden + 2_000_000
