"""Small models as `evilm.EViLM` has them, and frames for them."""

import numpy as np
import torch

from evilm.config.data import FramesConfig
from evilm.config.finetune_command import HeadConfig
from evilm.model.evilm_model import EViLMModel
from evilm.model.inference import EViLM
from evilm.model.preprocess import Preprocessor
from evilm.model.task_model import TaskModel, TaskSpec
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from helpers.small_models import student_config

CAPTIONS = ["a red ball rolls to the left", "a blue star", "two green cubes, blinking in the fog"]
FRAMES = FramesConfig(num_frames=3, frame_px=64, resize="squash")


def random_evilm(**changes: object) -> EViLM:
    """A model with random weights."""
    vocab = Vocab(train_wordpiece(CAPTIONS, 60))
    torch.manual_seed(0)
    student = EViLMModel(student_config(**{"vocab_size": vocab.size, "max_text_len": 20} | changes))
    return EViLM(student, vocab, Preprocessor(FRAMES, student.config.num_frames))


def tuned_evilm(kind: str, labels: tuple[str, ...] = (), num_frames: int = 3, **head: object) -> EViLM:
    """The same with a random head of a task of this kind."""
    base = random_evilm(num_frames=num_frames)
    model = TaskModel(base.student, TaskSpec("t", kind, labels, HeadConfig(**head)), base.vocab)
    model.head.eval()
    return EViLM(base.student, base.vocab, base.preprocessor, model)


def noise(num_frames: int = 3, px: int = 64, seed: int = 0) -> np.ndarray:
    """Frames of noise."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, px, px, 3), dtype=np.uint8)
