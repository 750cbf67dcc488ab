"""Pickles built as the official EDM code builds them, converted without executing anything they hold."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stillroom.diffusion.denoisers._inert_pickle import Record, read_inert
from stillroom.diffusion.denoisers.edm_checkpoints import ALLOWED, convert_edm_pickle, edm_checkpoint
from stillroom.diffusion.denoisers.edm_networks import ADMUNet, SongUNet
from stillroom.diffusion.denoisers.edm_options import ADMOptions, SongOptions
from stillroom.errors import InputError

BASE: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 2,
    "out_channels": 2,
    "label_dim": 3,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
SMOOTH = {"resample_filter": [1, 3, 3, 1]}


def build(kind: str, **changes: Any) -> SongUNet | ADMUNet:
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in {**BASE, **changes}.items()}
    network = SongUNet(SongOptions(**values)) if kind == "SongUNet" else ADMUNet(ADMOptions(**values))
    with torch.no_grad():
        for k, (_, value) in enumerate(sorted(network.state_dict().items())):
            waves = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + k)
            value.copy_(0.2 * waves.reshape(value.shape))
    return network.eval()


# From the official code (NVlabs/edm, training/networks.py) with the same weights: every 37th number of its output.
OFFICIAL = [
    ("SongUNet", {}, [-0.09431081, -0.1785416, 0.08423144, 0.07575205, -0.02971302, -0.07929371, -0.03012292]),
    (
        "SongUNet",
        {**NCSNPP, **SMOOTH},
        [-0.1029266, -0.06954306, 0.07569413, 0.002909845, -0.06720167, -0.08906236, -0.02229385],
    ),
    (
        "SongUNet",
        {"encoder_type": "skip", "decoder_type": "skip", **SMOOTH},
        [-0.08739343, -0.06420395, -0.1716089, -0.03628318, -0.03504601, -0.0264766, -0.03861533],
    ),
    (
        "DhariwalUNet",
        {"model_channels": 64, "out_channels": 4},
        [0.4916944, 0.06775755, -0.05708476, -0.06304137, -0.1766247, -0.07774752, -0.1890236],
    ),
]


@pytest.mark.parametrize(("kind", "changes", "expected"), OFFICIAL)
def test_the_networks_compute_what_the_official_ones_do(
    kind: str, changes: dict[str, Any], expected: list[float]
) -> None:
    x = torch.sin(torch.arange(2 * 2 * 64, dtype=torch.float64)).reshape(2, 2, 8, 8).float()
    with torch.no_grad():
        output = build(kind, **changes)(x, torch.tensor([0.3, 2.5]), torch.eye(3)[[0, 2]])
    torch.testing.assert_close(output.flatten()[::37][:7], torch.tensor(expected), rtol=0, atol=2e-6)


class Persistent:
    """Is pickled as the official code pickles its objects: one call, with source, class name and state."""

    source = ""

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.name, self.state = name, state

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "class_name": self.name, "module_src": self.source, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


@pytest.fixture(autouse=True)
def official_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules of the official names, there to pickle by name; reading a pickle must not need them."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("reading called into the official code")

    package, module = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", package)
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    monkeypatch.setattr(Persistent, "source", f"open({str(tmp_path / 'executed')!r}, 'w').close()")
    yield
    assert not (tmp_path / "executed").exists()


def as_stored(module: nn.Module, name: str, **state: Any) -> Any:
    """Turn a module into what the official code would have pickled."""
    children: OrderedDict[str, Any] = OrderedDict()
    for key, child in module.named_children():
        if isinstance(child, nn.ModuleDict):  # the official networks keep their layers in plain ones, too
            plain = nn.ModuleDict()
            plain.__dict__["_modules"] = OrderedDict((k, as_stored(v, "UNetBlock")) for k, v in child.items())
            children[key] = plain
        else:
            children[key] = as_stored(child, type(child).__name__)
    own = {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict((k, v) for k, v in module._buffers.items() if k == "freqs"),
        "_non_persistent_buffers_set": set(),
        "_modules": children,
        "skip_scale": np.sqrt(0.5),
        "_init_args": (),
        "_init_kwargs": {},
    }
    if type(module).__name__ == "_Block":
        own["_buffers"]["resample_filter"] = torch.ones(1, 1, 2, 2) / 4
    return Persistent(name, {**own, **state})


def network_of(kind: str, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    network = build(kind, **changes)
    stored = nn.Module()
    stored.__dict__["_modules"] = OrderedDict(network._modules)
    stored.add_module("map_augment", nn.Linear(9, 16, bias=False))
    stored.add_module("absent", None)
    return network, {"stored": stored, "arguments": {**BASE, **changes, "augment_dim": 9, "dropout": 0.13}}


def write_pickle(
    file: Path,
    precond: str,
    kind: str,
    numbers: dict[str, Any],
    *,
    protocol: int = 4,
    extra: Any = None,
    **changes: Any,
) -> nn.Module:
    network, about = network_of(kind, **changes)
    inner = as_stored(about["stored"], kind, _init_kwargs=about["arguments"])
    outer = nn.Module()
    state = {"img_channels": 2, "img_resolution": 8, "use_fp16": False, **numbers}
    whole = as_stored(outer, precond, _modules=OrderedDict(model=inner), **state)
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": np.float64(1.2)})
    file.write_bytes(pickle.dumps({"ema": whole, "loss_fn": loss, "augment_pipe": extra}, protocol=protocol))
    return network


EDM = ("EDMPrecond", "SongUNet", {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5})


def states(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_edm_pickle_denoises_as_its_definition_says(tmp_path: Path, protocol: int) -> None:
    network = write_pickle(tmp_path / "net.pkl", *EDM, protocol=protocol)
    model = edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)
    x, sigma, label = states(), torch.tensor([0.3, 7.0]), torch.tensor([2, 0])
    s = sigma.view(-1, 1, 1, 1)
    with torch.no_grad():
        output = network(x / (s**2 + 0.25).sqrt(), sigma.log() / 4, torch.eye(3)[label])
        none = network(x / (s**2 + 0.25).sqrt(), sigma.log() / 4, torch.zeros(2, 3))
    skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
    torch.testing.assert_close(model.denoiser(x, sigma, label), skip * x + out * output)
    torch.testing.assert_close(model.denoiser(x, sigma), skip * x + out * none)
    torch.testing.assert_close(model.denoiser(x, sigma, torch.tensor([3])), skip * x + out * none)
    assert (model.shape, model.classes, model.sigma_min, model.sigma_max) == ((2, 8, 8), 3, 0.002, 80.0)
    assert model.feature is not None
    assert model.feature().shape == (2, 32, 4, 4)
    assert model.denoiser(x.double(), sigma.double(), label).dtype == torch.float64


def test_vp_ve_and_iddpm_pickles_denoise_as_their_definitions_say(tmp_path: Path) -> None:
    x, sigma = states(), torch.tensor(5.0)
    numbers: dict[str, Any] = {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}
    network = write_pickle(tmp_path / "vp.pkl", "VPPrecond", "SongUNet", numbers, label_dim=0)
    vp = edm_checkpoint(tmp_path / "vp.pkl", allow_pickle=True)
    time = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(26.0)) - 0.1) / 19.9
    with torch.no_grad():
        output = network(x / 26**0.5, torch.full((2,), 999 * time).float(), None)
    torch.testing.assert_close(vp.denoiser(x, sigma), x - 5 * output, rtol=1e-4, atol=1e-5)
    assert (vp.sigma_min, vp.sigma_max, vp.classes) == (pytest.approx(0.0010005, rel=1e-3), pytest.approx(152.167), 0)

    numbers = {"sigma_min": 0.02, "sigma_max": 100}
    network = write_pickle(tmp_path / "ve.pkl", "VEPrecond", "SongUNet", numbers, label_dim=0, **NCSNPP, **SMOOTH)
    ve = edm_checkpoint(tmp_path / "ve.pkl", allow_pickle=True)
    with torch.no_grad():
        output = network(x, torch.full((2,), 2.5).log(), None)
    torch.testing.assert_close(ve.denoiser(x, sigma), x + 5 * output, rtol=1e-4, atol=1e-5)
    assert (ve.sigma_min, ve.sigma_max) == (0.02, 100.0)

    numbers = {"C_1": 0.001, "C_2": 0.008, "M": 1000, "u": torch.zeros(1001)}
    network = write_pickle(tmp_path / "i.pkl", "iDDPMPrecond", "DhariwalUNet", numbers, out_channels=4, label_dim=0)
    iddpm = edm_checkpoint(tmp_path / "i.pkl", allow_pickle=True)
    assert iddpm.sigmas is not None
    assert len(iddpm.sigmas) == 1000
    index = int(np.abs(np.array(iddpm.sigmas) - 5.0).argmin())
    with torch.no_grad():
        output = network(x / 26**0.5, torch.full((2,), float(index)), None)[:, :2]
    torch.testing.assert_close(iddpm.denoiser(x, sigma), x - 5 * output, rtol=1e-4, atol=1e-5)


def test_a_pickle_without_the_flag_is_one_line_that_names_it(tmp_path: Path) -> None:
    write_pickle(tmp_path / "net.pkl", *EDM)
    with pytest.raises(InputError, match="add --allow_pickle") as error:
        edm_checkpoint(tmp_path / "net.pkl")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pkl"]


def test_a_converted_pickle_needs_the_flag_no_more(tmp_path: Path) -> None:
    write_pickle(tmp_path / "net.pkl", *EDM)
    x, sigma = states(), torch.tensor(2.0)
    expected = edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True).denoiser(x, sigma)
    written = (tmp_path / "net" / "model.safetensors").stat().st_mtime_ns
    for path in ("net", "net.pkl", "net/model.safetensors", "net/model.json"):
        torch.testing.assert_close(edm_checkpoint(tmp_path / path).denoiser(x, sigma), expected, rtol=0, atol=0)
    edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)
    assert (tmp_path / "net" / "model.safetensors").stat().st_mtime_ns == written  # converted once
    write_pickle(tmp_path / "net.pkl", *EDM, num_blocks=2)
    with pytest.raises(InputError, match="add --allow_pickle"):
        edm_checkpoint(tmp_path / "net.pkl")


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    write_pickle(tmp_path / "net.pkl", *EDM)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "model.json").write_text('{"format": "stillroom-model"}')
    with pytest.raises(InputError, match="describes no stillroom edm checkpoint"):
        edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)
    assert len(list((tmp_path / "net").iterdir())) == 1


class Attack:
    """Runs a command when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


class HiddenAttack(Attack):
    """The same, within what torch stores of a tensor."""

    def __reduce__(self) -> Any:
        return sys.modules["torch.storage"]._load_from_bytes, (pickle.dumps(Attack(self.file), protocol=2),)


def test_even_with_the_flag_a_foreign_global_is_refused_by_name(tmp_path: Path) -> None:
    write_pickle(tmp_path / "net.pkl", *EDM, extra=Attack(tmp_path / "executed"))
    with pytest.raises(InputError, match=rf"{os.system.__module__}\.system"):
        edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)


def test_a_pickle_within_a_tensor_is_not_executed(tmp_path: Path) -> None:
    _, about = network_of("SongUNet")
    about["stored"].map_layer0._parameters["bias"] = None
    inner = as_stored(about["stored"], "SongUNet", _init_kwargs=about["arguments"])
    layer = inner.state["_modules"]["map_layer0"].state
    layer["_parameters"]["bias"] = HiddenTensor(tmp_path / "executed")
    whole = as_stored(nn.Module(), "EDMPrecond", _modules=OrderedDict(model=inner), **EDM[2])
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"ema": whole}))
    with pytest.raises(InputError, match=r"'map_layer0\.bias'.*is no tensor that can be read"):
        edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)


class HiddenTensor(Attack):
    """A tensor whose storage is the attack."""

    def __reduce__(self) -> Any:
        storage = HiddenAttack(self.file)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (64,), (1,), False, OrderedDict())


@pytest.mark.parametrize("reached", [b"", b")R"], ids=["class", "object"])
def test_a_pickle_sets_no_attributes(reached: bytes, tmp_path: Path) -> None:
    # GLOBAL collections.OrderedDict (and a call of it), then BUILD with (None, {"pop": 1}), which means setattr.
    (tmp_path / "a.pkl").write_bytes(b"ccollections\nOrderedDict\n" + reached + b"(N}Vpop\nI1\nstb.")
    try:
        made = read_inert(tmp_path / "a.pkl", ALLOWED)
    except InputError:
        made = Record()
    assert callable(made.pop)
    assert callable(Record.pop)
    assert callable(OrderedDict.pop)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_one_line(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.pkl"
        file.write_bytes(data)
        try:
            read_inert(file, ALLOWED)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most bytes are refused, some are not


def test_a_cut_off_pickle_is_damaged_wherever_it_is_cut(tmp_path: Path) -> None:
    write_pickle(tmp_path / "net.pkl", *EDM)
    whole = (tmp_path / "net.pkl").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.pkl").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="damaged or no pickle"):
            edm_checkpoint(tmp_path / "cut.pkl", allow_pickle=True)
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize(
    ("precond", "kind", "changes", "message"),
    [
        ("Precond", "SongUNet", {}, "'Precond'"),
        ("EDMPrecond", "UNet", {}, "'UNet'"),
        ("EDMPrecond", "SongUNet", {"surprise": 1}, "'surprise'"),
        ("EDMPrecond", "SongUNet", {"num_blocks": 2.5}, "'num_blocks' is 2.5"),
        ("EDMPrecond", "SongUNet", {"num_blocks": 2}, "is missing"),
        ("EDMPrecond", "SongUNet", {"model_channels": 32}, "shape"),
    ],
)
def test_what_is_not_known_or_does_not_fit_is_named(
    precond: str, kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, about = network_of("SongUNet")
    inner = as_stored(about["stored"], kind, _init_kwargs={**about["arguments"], **changes})
    whole = as_stored(nn.Module(), precond, _modules=OrderedDict(model=inner), **EDM[2])
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"ema": whole}))
    with pytest.raises(InputError, match=message):
        convert_edm_pickle(tmp_path / "net.pkl", tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_other_pickles_and_missing_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no EDM checkpoint"):
        edm_checkpoint(tmp_path / "none.pkl")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"ema": [1, 2]}))
    with pytest.raises(InputError, match="holds no network"):
        edm_checkpoint(tmp_path / "other.pkl", allow_pickle=True)
    write_pickle(tmp_path / "net.pkl", *EDM)
    edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)
    (tmp_path / "net" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
        edm_checkpoint(tmp_path / "net")
    shutil.rmtree(tmp_path / "net")
    (tmp_path / "net").mkdir()
    with pytest.raises(InputError, match=r"model\.json does not exist"):
        edm_checkpoint(tmp_path / "net")


def test_wrong_channels_and_a_condition_out_of_place_are_said(tmp_path: Path) -> None:
    write_pickle(tmp_path / "net.pkl", *EDM, label_dim=0)
    model = edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)
    with pytest.raises(InputError, match=r"shape \(2, 8, 8\), got \(3, 8, 8\)"):
        model.denoiser(torch.zeros(1, 3, 8, 8), torch.tensor(1.0))
    with pytest.raises(InputError, match="unconditional"):
        model.denoiser(states(), torch.tensor(1.0), torch.tensor([0, 1]))


def test_loading_leaves_the_user_s_random_numbers_alone(tmp_path: Path) -> None:
    write_pickle(tmp_path / "net.pkl", *EDM)
    edm_checkpoint(tmp_path / "net.pkl", allow_pickle=True)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    edm_checkpoint(tmp_path / "net")
    torch.testing.assert_close(torch.rand(1), expected)
