"""The LoRA adapters of an engine, by name. For the event loop; only loading uses a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from inference.engine.errors import (
    AdapterNotFound,
    AdaptersDisabled,
    InvalidAdapter,
    Overloaded,
)
from inference.engine.interface import AdapterInfo

if TYPE_CHECKING:
    from inference.model.lora.adapted import Adapter

logger = logging.getLogger(__name__)

MAX_NAME_CHARACTERS = 256

UNLOADED_SECONDS = 60.0
"""Time after an adapter's unloading in which no copy of it is loaded from another replica."""


class Loader(Protocol):
    """Loads an adapter for the engine's model; blocks. Raises InvalidAdapter."""

    def load(self, name: str, path: str) -> Adapter: ...


class LoraModule(NamedTuple):
    """An adapter that is loaded with the model: a name, and a folder or hub id."""

    name: str
    path: str


class WithoutAdapters:
    """The part of an engine that serves no adapters."""

    adapters: Sequence[AdapterInfo] = ()
    max_adapters = 0
    allows_loading_adapters = False

    async def load_adapter(self, name: str, path: str, copied_sha256: str = "") -> AdapterInfo:
        raise AdaptersDisabled("this engine serves no LoRA adapters")

    def unload_adapter(self, name: str) -> None:
        raise AdaptersDisabled("this engine serves no LoRA adapters")


class Adapters:
    """Loads, finds and forgets adapters. An adapter is immutable once it is loaded."""

    def __init__(
        self,
        loader: Loader | None = None,
        *,
        model_name: str = "",
        max_adapters: int = 0,
        allows_loading: bool = False,
    ) -> None:
        """Without `loader` the engine serves no adapters.

        `allows_loading`: adapters may be loaded and unloaded while the engine runs.
        """
        self._loader = loader
        self._model_name = model_name
        self.allows_loading = allows_loading and loader is not None
        self.max_adapters = 0 if loader is None else max_adapters
        self._loaded: dict[str, Adapter] = {}
        self._loading: set[str] = set()
        self._unloaded: dict[str, float] = {}
        """When adapters were unloaded, in `time.monotonic()` seconds."""

    @property
    def infos(self) -> list[AdapterInfo]:
        """The loaded adapters, in the order of loading."""
        return [adapter.info for adapter in self._loaded.values()]

    def get(self, name: str) -> Adapter | None:
        """The adapter of this name; None for "". Raises AdapterNotFound."""
        if not name:
            return None
        if name not in self._loaded:
            raise AdapterNotFound(f"no LoRA adapter {name!r:.200} is loaded", field="model")
        return self._loaded[name]

    def load_now(self, modules: Iterable[LoraModule]) -> None:
        """Loads adapters with the model; blocks. Raises InvalidAdapter or Overloaded."""
        for module in modules:
            assert self._loader is not None, "the settings enable adapters"
            self._check_new(module.name)
            adapter = self._loader.load(module.name, module.path)
            info = replace(adapter.info, is_of_settings=True)
            self._loaded[module.name] = replace(adapter, info=info)

    async def load(self, name: str, path: str, copied_sha256: str = "") -> AdapterInfo:
        """Loads an adapter in a thread.

        `copied_sha256`: the digest that it has in another replica and must have here. Raises
        AdaptersDisabled, InvalidAdapter or Overloaded.
        """
        self._check_allowed()
        self._check_new(name)
        if copied_sha256:
            self._check_not_unloaded(name)
        if not path:
            raise InvalidAdapter("lora_path must not be empty", field="lora_path")
        assert self._loader is not None, "it is allowed"
        self._loading.add(name)
        try:
            adapter = await asyncio.to_thread(self._loader.load, name, path)
        finally:
            self._loading.discard(name)
        if copied_sha256 not in ("", adapter.info.model_sha256):
            raise InvalidAdapter(f"lora_path {path!r:.80} has other files here", field="lora_path")
        self._loaded[name] = adapter
        self._unloaded.pop(name, None)
        logger.info("LoRA adapter loaded", extra={"adapter": name, "path": path})
        return adapter.info

    def unload(self, name: str) -> None:
        """Forgets an adapter; its sequences hold it until they end.

        Raises AdaptersDisabled or AdapterNotFound.
        """
        self._check_allowed()
        if self._loaded.pop(name, None) is None:
            raise AdapterNotFound(f"no LoRA adapter {name!r:.200} is loaded", field="lora_name")
        now = time.monotonic()
        recent = {key: at for key, at in self._unloaded.items() if now - at < UNLOADED_SECONDS}
        self._unloaded = {**recent, name: now}
        logger.info("LoRA adapter unloaded", extra={"adapter": name})

    def _check_allowed(self) -> None:
        if not self.allows_loading:
            raise AdaptersDisabled(
                "LoRA adapters cannot be loaded or unloaded; INFERENCE_ALLOW_RUNTIME_LORA allows it"
            )

    def _check_not_unloaded(self, name: str) -> None:
        unloaded = self._unloaded.get(name)
        if unloaded is not None and time.monotonic() - unloaded < UNLOADED_SECONDS:
            raise InvalidAdapter(
                f"lora_name {name!r} was unloaded less than {UNLOADED_SECONDS:.0f} s ago",
                field="lora_name",
            )

    def _check_new(self, name: str) -> None:
        if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
            raise InvalidAdapter(
                f"lora_name must have 1 to {MAX_NAME_CHARACTERS} characters. Given: {len(name)}",
                field="lora_name",
            )
        if name in self._loaded or name in self._loading or name == self._model_name:
            raise InvalidAdapter(f"lora_name {name!r} is already served", field="lora_name")
        if len(self._loaded) + len(self._loading) >= self.max_adapters:
            raise Overloaded(
                f"at most {self.max_adapters} LoRA adapters can be loaded (INFERENCE_MAX_LORAS); "
                "unload another one first"
            )
