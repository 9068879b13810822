"""E-ViLM for `transformers.AutoModel`: the same weights and features as `evilm.EViLM`, as a module of transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

from evilm.config.base import validate
from evilm.config.models import EViLMConfig
from evilm.errors import ConfigError
from evilm.model.auto_config import EViLMAutoConfig
from evilm.model.evilm_model import EViLMModel
from evilm.model.inference import EViLM

_LOADING = ("_from_auto", "trust_remote_code", "adapter_kwargs", "attn_implementation", "token", "revision")
_LOADING += ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder")
"""Arguments that AutoModel passes on, which do not concern a folder on this machine."""


@dataclass
class EViLMOutput(ModelOutput):
    """Outputs of E-ViLM; None for inputs not given."""

    video_features: Float[Tensor, "clip region dim"] | None = None
    """As `EViLM.embed_videos` returns them."""
    text_features: Float[Tensor, "clip word dim"] | None = None
    """As `EViLM.embed_texts` returns them."""
    match_logits: Float[Tensor, "clip 2"] | None = None
    """Scores of mismatch (0) and match (1) of each video with its text."""


class EViLMAutoModel(PreTrainedModel):
    """An E-ViLM, built by `transformers.AutoModel`; `evilm` is the same model with the methods of `evilm.EViLM`."""

    config_class = EViLMAutoConfig
    base_model_prefix = "student"
    main_input_name = "frames"

    def __init__(self, config: EViLMAutoConfig, evilm: EViLM | None = None) -> None:
        """Initialise randomly, or use a loaded model."""
        super().__init__(config)
        self.evilm = evilm
        sizes = validate(EViLMConfig, config.settings(), where="config")
        self.student = EViLMModel(sizes, pretrained_video=False) if evilm is None else evilm.student

    def forward(
        self,
        frames: UInt8[Tensor, "clip frame height width 3"] | None = None,
        input_ids: Int64[Tensor, "clip word"] | None = None,
        attention_mask: Int64[Tensor, "clip word"] | None = None,
        token_type_ids: Tensor | None = None,
        mask: Bool[Tensor, "clip frame grid grid"] | None = None,
    ) -> EViLMOutput:
        """Encode videos, texts or both, and match each video with its text.

        Args:
            frames: of videos, as `evilm.preprocessor` returns them.
            input_ids: of texts, as BertTokenizer returns them for the model's vocabulary.
            attention_mask: 0 at padding; None means no padding.
            token_type_ids: not used; BertTokenizer returns it.
            mask: True where a region is black.
        """
        video = None if frames is None else self.student.encode_video(frames, mask)
        if input_ids is None:
            return EViLMOutput(video_features=video)
        padding = torch.zeros_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask == 0
        text = self.student.encode_text(input_ids, padding)
        if video is None:
            return EViLMOutput(text_features=text)
        return EViLMOutput(video, text, self.student.match_logits(self.student.decode(video, text, padding).cls))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        config: EViLMAutoConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        **kwargs: Any,
    ) -> "EViLMAutoModel":
        """Load the model saved in a folder, as `evilm.EViLM.from_pretrained` does, with its checks.

        Raises:
            CheckpointError: there is no model, or it is damaged.
            ConfigError: an argument can't be used here.
        """
        place = str(pretrained_model_name_or_path)
        if unknown := [name for name, value in kwargs.items() if name not in _LOADING and value is not None]:
            raise ConfigError(
                f"{unknown[0]} = {kwargs[unknown[0]]!r} can't be used for E-ViLM; use dtype and device_map"
            )
        if isinstance(device_map, Mapping) or device_map == "auto":
            raise ConfigError(f"device_map = {device_map!r}: E-ViLM is kept on one device; use cpu, cuda or cuda:1")
        found = EViLM.from_pretrained(place, None if dtype == "auto" else dtype, device_map or "cpu")
        config = config or EViLMAutoConfig.from_pretrained(place)
        for name, value in found.config.model_dump(mode="json").items():
            if getattr(config, name, value) != value:
                raise ConfigError(
                    f"{name} = {getattr(config, name)!r}: the model in {place} has {value!r}; leave it out"
                )
        return cls(config, found).eval()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write a folder that `AutoModel` and `evilm.EViLM` load; further arguments are ignored.

        Raises:
            ConfigError: the model was not loaded from a folder, so it has no vocabulary.
        """
        if self.evilm is None:
            raise ConfigError(
                "this model has no vocabulary, so it cannot be saved; build "
                "`evilm.EViLM(model.student, vocab, preprocessor)` and save that"
            )
        self.evilm.save_pretrained(save_directory)
