"""Build what trials share: frames, vocabulary, tokenizers and codes, each once for all trials that need the same."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evilm.config.base import fingerprint
from evilm.config.stage_settings import recorded_names
from evilm.config.stages import Pretrain
from evilm.errors import CollapseError, ConfigError, NonFiniteError
from evilm.io import storage
from evilm.shards import FrameManifest
from evilm.tasks.inputs import Inputs, build_data, build_missing

logger = logging.getLogger(__name__)

_OF_DATA = (
    *("render_corpus.", "shard_videos.", "build_vocab.", "columns."),
    *("manifest", "videos", "frames", "vocab"),
)
_OF_TOKENIZER = ("train_tokenizer.", "tokenizer")
_OF_CODES = ("precompute_codes.", "views")


@dataclass(frozen=True)
class SharedPlaces:
    """Inputs of a trial."""

    inputs: Inputs
    train_clips: int
    val_clips: int
    error: str = ""
    """Reason why no trial can run on them, if swept settings let the tokenizer collapse or diverge."""

    def steps_per_epoch(self, config: Pretrain) -> int:
        """Return the steps of an epoch; one where a trial has none, and will fail by itself."""
        full, rest = divmod(self.train_clips, config.schedule.batch_clips)
        return max(1, full + (1 if rest and config.schedule.tail != "drop" else 0))


class SharedInputs:
    """Builds the inputs of trials, each once.

    What no swept setting touches lies under the sweep's --root, as for `pretrain`; what depends on swept values lies in
    the sweep's own folder, below `shared/` under a digest of these values.
    """

    def __init__(self, base: Pretrain, out: str, uri: str) -> None:
        """Create shared inputs; `uri` is the MLflow store of the whole sweep, '' for none."""
        tracking = base.tracking.model_copy(update={"uri": uri, "run_name": "", "log_model": False})
        self._base = base.model_copy(update={"tracking": tracking})
        self._out = out
        self._built: dict[str, SharedPlaces] = {}

    def ground(self, values: Mapping[str, Any]) -> SharedPlaces:
        """Return the inputs of a trial with these values; build what is missing.

        Raises:
            ConfigError: there are no clips to score trials on.
            CollapseError, NonFiniteError: the tokenizer failed, and all trials were to share it.
        """
        upstream = {n: v for n, v in values.items() if n.startswith((*_OF_DATA, *_OF_TOKENIZER, *_OF_CODES))}
        key = fingerprint(upstream)
        if key not in self._built:
            self._built[key] = self._build(upstream)
        return self._built[key]

    def _build(self, upstream: Mapping[str, Any]) -> SharedPlaces:
        config = self._base.override(upstream)
        of_data = {name: value for name, value in upstream.items() if name.startswith(_OF_DATA)}
        of_tokenizer = {name: value for name, value in upstream.items() if name.startswith(_OF_TOKENIZER)}
        if upstream:
            logger.info("inputs for %s", ", ".join(f"{name} = {value}" for name, value in upstream.items()))
        data_root = self._folder(of_data)
        frames, vocab = build_data(config.model_copy(update={"root": data_root}))
        manifest = FrameManifest.load(frames)
        train, val = manifest.num_clips("train"), manifest.num_clips("val")
        if not val:
            raise ConfigError(
                f"{frames} has no clips of the split val to score trials on, only {manifest.splits}; "
                "shard some of your clips with --split val, or a manifest with a split column"
            )
        root = self._folder(of_data | of_tokenizer)
        try:
            inputs = build_missing(config.model_copy(update={"root": root, "frames": frames, "vocab": vocab}))
        except (CollapseError, NonFiniteError) as error:
            if not upstream:
                raise
            inputs = Inputs(frames, storage.join(root, "codes"), vocab, storage.join(root, "tokenizer"))
            return SharedPlaces(inputs, train, val, str(error))
        return SharedPlaces(inputs, train, val)

    def _folder(self, values: Mapping[str, Any]) -> str:
        digest = fingerprint(recorded_names(values), 10)
        return storage.join(self._out, "shared", digest) if values else self._base.root
