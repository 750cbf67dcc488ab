"""An export counts only after it was loaded again and answered as the network does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import InputError, MissingExtraError
from stillroom.models.create import create_model
from stillroom.models.export import ExportError, export_model
from stillroom.models.store import ModelCard, load_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.norm(self.conv(images)).relu().mean((2, 3))))


class Noisy(Net):
    """Answers otherwise each time, so no export can agree with it."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 1e-3 * torch.rand_like(images[:, 0, 0, :3])


class Unexportable(Net):
    """Decides by what it sees: a branch no exporter can write down."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if images.sum() > 0 else -logits


SHAPE = (1, 8, 8)
CARD = ModelCard(
    architecture="resnet8",
    num_classes=3,
    classes=("cat", "dog", "émeu"),
    mean=(0.5,),
    std=(0.25,),
    input_shape=SHAPE,
)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(16, *SHAPE) + 2)  # batch statistics that are not the initial ones
    return model


def test_onnx_and_torch_exports_answer_as_the_network_for_any_batch_size(net: Net, tmp_path: Path) -> None:
    onnx, program = export_model(net, CARD, tmp_path / "export", ["onnx", "torch"])
    assert net.training  # the network itself is left as it was
    assert [onnx.path.name, program.path.name] == ["model.onnx", "model.pt2"]
    assert sorted(file.name for file in (tmp_path / "export").iterdir()) == ["model.onnx", "model.pt2"]

    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.path, providers=["CPUExecutionProvider"])
    loaded = torch.export.load(program.path).module()
    net.eval()
    for size in (1, 3):
        images = torch.randn(size, *SHAPE)
        expected = net(images)
        torch.testing.assert_close(loaded(images), expected)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected)
    for export in (onnx, program):
        assert 0 <= export.max_difference < 1e-5
        assert export.size_mb == export.path.stat().st_size / 1e6


def test_safetensors_reload_with_their_card_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("resnet8", num_classes=3, in_channels=1, image_size=8)
    (export,) = export_model(network, CARD, tmp_path, ["safetensors"])
    assert (export.path.name, export.max_difference) == ("model.safetensors", 0.0)
    loaded = load_model(tmp_path)
    assert loaded.card == CARD
    images = torch.randn(4, *SHAPE)
    torch.testing.assert_close(loaded.model(images), network.eval()(images), rtol=0, atol=0)


def test_onnx_and_torch_files_carry_classes_and_normalisation(net: Net, tmp_path: Path) -> None:
    onnx, program = export_model(net, CARD, tmp_path, ["onnx", "torch"])

    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.path, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    files = {f"{name}.json": "" for name in ("classes", "mean", "std", "input_shape")}
    torch.export.load(program.path, extra_files=files)
    for found in (told, {name.removesuffix(".json"): value for name, value in files.items()}):
        assert json.loads(found["classes"]) == list(CARD.classes)
        assert (json.loads(found["mean"]), json.loads(found["std"])) == ([0.5], [0.25])
        assert json.loads(found["input_shape"]) == [1, 8, 8]


def test_weights_that_do_not_fit_their_card_are_refused(net: Net, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        export_model(net, CARD, tmp_path, ["safetensors"])  # the card says resnet8
    assert not list(tmp_path.iterdir())


def test_nothing_reaches_standard_output(net: Net, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_model(net, CARD, tmp_path, ["onnx", "torch"])
    assert capfd.readouterr().out == ""


def test_an_export_that_answers_differently_is_refused_and_leaves_what_stood_there(net: Net, tmp_path: Path) -> None:
    (before,) = export_model(net, CARD, tmp_path, ["torch"])
    content = before.path.read_bytes()
    with pytest.raises(ExportError, match=r"torch export differs from the network by .* nothing was kept"):
        export_model(Noisy(), CARD, tmp_path, ["torch"])
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert before.path.read_bytes() == content


def test_a_network_that_answers_nan_is_refused(net: Net, tmp_path: Path) -> None:
    with torch.no_grad():
        net.classifier.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="differs from the network by nan"):
        export_model(net, CARD, tmp_path, ["torch"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_network_no_exporter_can_write_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"cannot be exported as {name}: Could not guard on data-dependent") as caught:
        export_model(Unexportable(), CARD, tmp_path, [name])  # type: ignore[list-item]
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused_before_anything_is_written(net: Net, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown export format 'onxn'; did you mean 'onnx'"):
        export_model(net, CARD, tmp_path / "export", ["torch", "onxn"])  # type: ignore[list-item]
    assert not (tmp_path / "export").exists()


def test_missing_onnx_packages_name_the_extra(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed; .*stillroom\[onnx\]"):
        export_model(net, CARD, tmp_path / "export", ["onnx", "torch"])
