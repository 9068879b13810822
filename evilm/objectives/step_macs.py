"""Count the multiply-accumulates (MACs) and gradient bytes of a training step, from the model itself."""

from dataclasses import dataclass

from evilm.config.models import EViLMConfig, VideoTokenizerConfig
from evilm.config.training import ObjectivesConfig
from evilm.dataloader.masking import num_masked
from evilm.model import cost
from evilm.model.evilm_model import EViLMModel

_MLP_RATIO = 4  # in the blocks of a ViT


@dataclass(frozen=True)
class StepWork:
    """MACs of forward passes per clip, and bytes that workers exchange."""

    encoder_macs: float
    """Video encoder, all frames."""
    other_macs: float
    """The rest of a step: projection, texts, decoder passes, heads."""
    tokenizer_macs: float
    """Video tokenizer, all frames."""
    gradient_bytes: int
    """Gradients of all trained parameters, float32."""

    @property
    def student_macs(self) -> float:
        """Forward MACs of the model per clip and step."""
        return self.encoder_macs + self.other_macs


def work_of(
    student: EViLMConfig, tokenizer: VideoTokenizerConfig, objectives: ObjectivesConfig, num_words: int
) -> StepWork:
    """Count the work of a step on captions of `num_words` word pieces each."""
    model = EViLMModel(student, pretrained_video=False)
    encoder, other = step_macs(model, objectives, num_words)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return StepWork(encoder, other, tokenizer_macs(tokenizer, student.num_frames), 4 * trained)


def step_macs(student: EViLMModel, objectives: ObjectivesConfig, num_words: int) -> tuple[float, float]:
    """Count the forward MACs of one clip in a step: those of the video encoder, and the rest.

    The video is encoded once; matching adds a second caption and a second decoder pass. Heads process only masked words
    and regions.
    """
    config, parts = student.config, cost.macs(student, num_words)
    passes = 2 if objectives.vtm_weight else 1
    other = parts["visual projection"] + passes * (parts["text encoder + projection"] + parts["decoder"])
    if objectives.vtm_weight:
        other += passes * parts["pooler + matching head"]
    if objectives.mlm_weight:
        masked_words = max(1.0, objectives.mlm_ratio * (num_words - 2))  # [CLS] and [SEP] are never masked
        other += masked_words * (config.dim * config.text_dim + config.text_dim * config.vocab_size)
    if objectives.mvm_weight:
        masked_regions = config.num_frames * num_masked(config.grid**2, objectives.mask_ratio)
        other += masked_regions * (config.dim**2 + config.dim * config.num_codes)
    return parts["video encoder"], other


def tokenizer_macs(config: VideoTokenizerConfig, num_frames: int) -> float:
    """Count the MACs of encoding a clip to codes: patches, blocks, projection, comparison with every code.

    The word decoder is not needed. A CLIP encoder has a [CLS] beside the patches.
    """
    regions, width = config.grid**2, config.encoder_dim
    length = regions + (1 if config.encoder_weights else 0)
    patches = regions * 3 * config.patch_px**2 * width
    per_position = (4 + 2 * _MLP_RATIO) * width**2 + 2 * length * width
    codes = regions * config.codebook.code_dim * (width + config.codebook.num_codes)
    return num_frames * (patches + config.encoder_layers * length * per_position + codes)


def word_decoder_macs(config: VideoTokenizerConfig) -> float:
    """Count the MACs of a clip's word scores from its codes: blocks over all regions, one head."""
    regions, width = config.num_frames * config.grid**2, config.decoder_dim
    per_position = (4 + 2 * _MLP_RATIO) * width**2 + 2 * regions * width
    layers = config.decoder_layers * regions * per_position
    return regions * config.codebook.code_dim * width + layers + width * config.vocab_size
