"""Make E-ViLM known to `transformers.AutoConfig` and `AutoModel`, without importing transformers.

transformers has no entry points for models. So its registration waits for the import of the module that holds the
registry, which may never come: an import hook for this one module.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTRY = "transformers.models.auto.configuration_auto"


class _RegistryFinder:
    """Find the module of the registry as others do, and register the model when it has been imported.

    Without `importlib.abc.MetaPathFinder` as its base, whose import takes longer than all else of `import evilm`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register
        return spec


def register() -> None:
    """Register the model now if transformers has been imported, else as soon as it is."""
    if (module := sys.modules.get(_REGISTRY)) is not None:
        _register(module)
    else:
        sys.meta_path.insert(0, _RegistryFinder())


def _register(registry: ModuleType) -> None:
    try:
        from evilm.model.auto_config import EViLMAutoConfig

        registry.AutoConfig.register(EViLMAutoConfig.model_type, EViLMAutoConfig, exist_ok=True)
    except (ImportError, AttributeError) as error:  # whoever imports transformers may not need the model
        import logging  # not with `import evilm`: it takes half of its time

        logging.getLogger(__name__).warning("transformers.AutoModel can't load E-ViLM models: %s", error)
