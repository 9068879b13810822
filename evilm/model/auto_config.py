"""The config of E-ViLM for `transformers.AutoConfig`: all keys of a model's config.json are its attributes."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from evilm.config.models import EViLMConfig


class EViLMAutoConfig(PreTrainedConfig):
    """The config of a saved E-ViLM, as transformers reads it."""

    model_type = "evilm"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The class of the model is registered with the first config, which AutoModel reads before the model: this
        # module is imported while transformers is being imported, and importing the model there would be a circle.
        from transformers import AutoModel

        from evilm.model.auto_model import EViLMAutoModel

        AutoModel.register(EViLMAutoConfig, EViLMAutoModel, exist_ok=True)

    def settings(self) -> dict[str, Any]:
        """Return the sizes of the model, without what transformers adds."""
        return {name: getattr(self, name) for name in EViLMConfig.model_fields if hasattr(self, name)}
