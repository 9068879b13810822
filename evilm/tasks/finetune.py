"""Fine-tune a pre-trained model on the items of a downstream task, with Ray Train. Paper: Sec. 4.2 and 4.4."""

import logging
from functools import cached_property
from typing import Any

from evilm.config.base import validate
from evilm.config.data import FramesConfig
from evilm.config.items import ITEM_LAYOUTS
from evilm.config.models import EViLMConfig
from evilm.config.stages import Finetune
from evilm.dataloader.clip_reader import ClipAugmentation
from evilm.dataloader.item_collate import ItemCollate
from evilm.dataloader.item_loader import ClipIndex, ItemLoader, ItemTable
from evilm.dataloader.loader import DataLoader
from evilm.dataloader.sampler import EvalSampler, TrainSampler, batch_sizes
from evilm.errors import UsageError
from evilm.io import storage
from evilm.items.item_tables import ItemsManifest
from evilm.items.seen_clips import clip_hashes, write_seen
from evilm.shards import FrameManifest, check_num_frames, publish_side
from evilm.tasks.publications import load_frames
from evilm.tasks.task_inputs import find_items, variant
from evilm.tasks.training_run import TrainingRun
from evilm.text.vocab import Vocab
from evilm.tracking.mlflow_run import TrackedRun, tracking_uri
from evilm.tracking.run_file import read_run_file

logger = logging.getLogger(__name__)

_MC_ADVICE = (
    "score a model of msrvtt-retrieval on it, fine-tuned with --items.protocol 7k, whose videos are not among its test "
    "videos"
)


def finetune(config: Finetune) -> dict[str, Any]:
    """Fine-tune a model, building missing items first, or reuse a finished one at `out`.

    Returns:
        The summary: fingerprints, items, steps, losses and scores of train and val, seconds.

    Raises:
        UsageError: the task is missing or has no training split.
        ConfigError: the settings do not fit the inputs.
        CheckpointError: there is no model to start from.
    """
    from evilm.model import pretrained
    from evilm.model.evilm_model import KIND, WEIGHTS
    from evilm.model.identity import model_fingerprint
    from evilm.model.pretrained import VOCAB
    from evilm.model.task_model import TaskModel, arch_for, task_fingerprint
    from evilm.train.launch import catch_up

    if not config.task:
        raise UsageError(f"--task is missing; use {', '.join(ITEM_LAYOUTS.names())}")
    config = config.resolved().with_precision()
    root = storage.absolute(config.root)
    model = storage.absolute(config.model or storage.join(root, "model"))
    out = storage.absolute(config.out or storage.join(root, f"{variant(config)}-model"))
    frames = load_frames("" if config.overwrite else out, config.frames or storage.join(root, "frames"))
    items = find_items(config, frames)
    if not items.epoch_size("train"):
        advice = _MC_ADVICE if config.task == "msrvtt-mc" else "add the training annotations"
        raise UsageError(f"--task {config.task}: {items.uri} has no items of split train; {advice}")
    arch = arch_for(
        validate(EViLMConfig, pretrained.read_config(model, KIND)["config"], where=model),
        config.max_text_len,
        config.num_frames,
    )
    check_num_frames(frames, arch.num_frames)
    places = {"frames": frames.uri, "task_items": items.uri, "model": model, "out": out}
    config = config.model_copy(update=places)
    if not config.tracking.parent and (parent := _run_of(model, tracking_uri(config, out))):
        config = config.override({"tracking.parent": parent})
    inputs = {"model": model_fingerprint(model), "frames": frames.fingerprint, "items": items.fingerprint}
    inputs["vocab"] = Vocab.load(storage.join(model, VOCAB)).fingerprint

    def describe() -> dict[str, Any]:
        splits = {split: items.epoch_size(split) for split in items.splits}
        return {
            "out": out,
            "inputs": inputs,
            "task": config.task,
            "items": splits,
            "fingerprint": task_fingerprint(out),
        }

    load, files = TaskModel.from_pretrained, (WEIGHTS, pretrained.CONFIG, VOCAB)
    training = TrainingRun(config, "finetune", "finetune", out, inputs, load, describe, files)
    with training.open(items.uri, items.epoch_size("train"), items.epoch_size("val")) as output:
        done = output.done
        if done and training.is_published(done):
            catch_up(config, "finetune", out, done)
            return done | {"reused": True}
        if not done:
            _, report = FinetuneTask(config).start()
            if report:
                logger.info("%s", report)
            schedule = config.schedule
            batch_sizes(items.epoch_size("train"), schedule.batch_clips, schedule.tail, config.num_micro_batches)
            publish_side(frames, replace=False)
            names = ("train", "val") if items.epoch_size("val") and schedule.eval_clips else ("train",)
            seen = [clip_hashes(frames, clip_ids=set(items.read(name)["clip_id"].to_pylist()))[1] for name in names]
            output.check()
            write_seen(out, seen[0], [] if config.from_scratch else [model], *seen[1:])
        summary = training.finish(output)
        output.check()
        output.close(summary)
    return summary


def _run_of(model: str, uri: str) -> str:
    """Return the id of the MLflow run that made a model, if it is in the store at `uri`; else ''."""
    return str(read_run_file(model, uri).get("run_id", "")) if uri else ""


def build_task(settings: dict[str, Any]) -> "FinetuneTask":
    """Build the task from the settings sent by `fit`."""
    return FinetuneTask(Finetune.model_validate(settings))


class FinetuneTask:
    """Objective, loaders and export of a downstream task."""

    def __init__(self, settings: Finetune) -> None:
        from evilm.model import pretrained
        from evilm.model.evilm_model import KIND
        from evilm.model.pretrained import VOCAB
        from evilm.model.task_model import TaskSpec, arch_for

        self.settings = settings
        self._vocab = Vocab.load(storage.join(settings.model, VOCAB))
        self._frames = FrameManifest.load(settings.frames)
        self._items = ItemsManifest.load(settings.task_items)
        arch = validate(EViLMConfig, pretrained.read_config(settings.model, KIND)["config"], where=settings.model)
        self.arch = arch_for(arch, settings.max_text_len, settings.num_frames)
        items = self._items
        self.spec = TaskSpec(items.task, items.kind, items.labels, settings.head)

    @cached_property
    def _clips(self) -> ClipIndex:
        return ClipIndex(self._frames)

    @cached_property
    def _val_items(self) -> ItemTable:
        return ItemTable(self._items, "val", self._clips)

    def objective(self) -> Any:
        """Build the model with a fresh head and its loss."""
        from evilm.model.task_model import TaskModel
        from evilm.objectives.item_objective import ItemObjective, RetrievalObjective

        student, _ = self.start()
        model = TaskModel(student, self.spec, self._vocab)
        return RetrievalObjective(model) if self.spec.kind == "retrieval" else ItemObjective(model)

    def start(self) -> tuple[Any, Any]:
        """Build the model; return it with a report of the weights it took from the pre-trained one."""
        from evilm.model.evilm_model import EViLMModel
        from evilm.model.identity import read_objectives
        from evilm.model.warm_start import start_model

        if self.settings.from_scratch:
            return EViLMModel(self.arch), None
        place = self.settings.model
        return start_model(self.arch, place, self._vocab, read_objectives(place)[1])

    def train_loader(self, rank: int, world: int) -> DataLoader:
        """Load the items of the train split."""
        schedule, is_retrieval = self.settings.schedule, self.spec.kind == "retrieval"
        negatives = self.spec.head.num_negatives if is_retrieval and self.spec.head.match_weight else 0
        items = ItemTable(self._items, "train", self._clips, draw=is_retrieval, num_negatives=negatives)
        order = TrainSampler(
            items.groups, schedule.batch_clips, schedule.seed, schedule.shuffle_groups, schedule.tail, rank, world
        )
        return self._loader(items, order)

    def eval_loader(self, rank: int, world: int) -> DataLoader | None:
        """Load the items of the val split, each once."""
        schedule = self.settings.schedule
        if not self._items.epoch_size("val") or not schedule.eval_clips:
            return None
        items = self._val_items
        most = max(1, self.settings.micro_batch_clips)
        return self._loader(items, EvalSampler(items.groups, most, schedule.eval_clips, 1, rank, world))

    def _loader(self, items: ItemTable, order: TrainSampler | EvalSampler) -> DataLoader:
        augmentation = ClipAugmentation(self.settings.schedule.seed, self.arch.num_frames)
        threads = self.settings.cluster.num_loader_threads
        return ItemLoader(items, self._clips, order, self.collate(), augmentation, threads)

    def collate(self) -> ItemCollate:
        """Return the collate function of items."""
        from evilm.model.task_model import masked_pieces

        pieces = masked_pieces(self.spec, self._vocab)
        return ItemCollate(self._vocab, self.arch.max_text_len, self.spec.kind, pieces)

    def panels(self, tracked: TrackedRun | None) -> None:
        """Return None: this task has no panels."""

    def forward_macs(self, objective: Any) -> float:
        """Return 0: items share clips, so the work per item differs from step to step."""
        return 0.0

    def describe(self, folder: str, objective: Any) -> None:
        """Write settings, labels, vocabulary and preprocessing."""
        from evilm.model import pretrained
        from evilm.model.evilm_model import KIND
        from evilm.model.inference import save_rules
        from evilm.model.preprocess import Preprocessor
        from evilm.model.task_model import TASK_FILE

        sampling = validate(FramesConfig, self._frames.sampling, where=self._frames.uri)
        save_rules(folder, self._vocab, Preprocessor(sampling, self.arch.num_frames), self.arch)
        storage.write_json(storage.join(folder, TASK_FILE), self.spec.as_json())
        pretrained.save_config(folder, KIND, objective.student.config)

    def export(self, objective: Any) -> None:
        """Write the model with its head, labels, vocabulary and preprocessing."""
        self.describe(self.settings.out, objective)
        objective.model.save_pretrained(self.settings.out)
