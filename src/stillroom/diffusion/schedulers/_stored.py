"""What a scheduler shares with its files and with other schedulers: configurations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.import_utils import DummyObject

from stillroom.diffusion.sampler import Sampler, start_file
from stillroom.diffusion.schedulers._convert import converted
from stillroom.diffusion.start import GaussianStart

__all__ = ["StoredScheduler"]


class StoredScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler whose configuration is all there is to store, but for the tensors some have beside it."""

    # EDMEulerScheduler is left out: what its configuration means depends on its class.
    _compatibles = [e.name for e in KarrasDiffusionSchedulers if e.name != "EDMEulerScheduler"]  # noqa: RUF012
    files: ClassVar[dict[str, str]] = {"start.safetensors": "schedule_start"}  # beside the configuration -> option
    start: GaussianStart | None = None

    def _prepare(self) -> None:
        """Read the files the configuration names."""
        file = self.config.schedule_file
        if file is not None:
            sampler = Sampler.load(file)
            # Copied, so that the configuration alone says how to sample.
            self._fix(
                schedule_file=None,
                schedule_sigmas=list(sampler.sigmas),
                schedule_start=str(start_file(file)) if sampler.start is not None else None,
                afs=sampler.afs,
                denoise_to_zero=sampler.denoise_to_zero,
            )
        if self.config.schedule_start is not None:
            self.start = GaussianStart.load(Path(self.config.schedule_start))

    def carry(self, start: GaussianStart) -> Self:
        """Begin with this Gaussian start; returns the scheduler."""
        self.start = start
        # So that a copy made of the configuration alone says what it lacks.
        self._fix(schedule_start="the start of a sampler in memory")
        return self

    def _fix(self, **values: Any) -> None:
        """Put values into the configuration as if they had been passed."""
        default = [name for name in self.config.get("_use_default_values", ()) if name not in values]
        self.register_to_config(**values, _use_default_values=default)  # type: ignore[no-untyped-call]

    @property
    def config(self) -> Any:
        """The configuration, with its options as attributes."""
        return super().config

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a scheduler from the configuration of any scheduler, also of another class."""
        if isinstance(config, Mapping):
            config = converted(dict(config), kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def _get_compatibles(cls) -> list[type[Any]]:
        own = [kind for base in StoredScheduler.__subclasses__() for kind in base.__subclasses__()]
        installed = [kind for kind in super()._get_compatibles() if not isinstance(kind, DummyObject)]
        return [*installed, *own]

    def _save_tensors(self, folder: Path) -> None:
        if self.start is not None:
            self.start.save(folder / "start.safetensors")

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the configuration, and the tensors that belong to it beside it."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        self._save_tensors(Path(save_directory))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read what ``save_pretrained`` of this or any other scheduler wrote."""
        folder = Path(pretrained_model_name_or_path or "", subfolder or "")
        for name, option in cls.files.items():
            if (folder / name).is_file():
                kwargs.setdefault(option, str(folder / name))
        return super().from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, return_unused_kwargs=return_unused_kwargs, **kwargs
        )
