"""The step of compression in which a teacher has a say in what the net learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellvision.checks import check_range, check_switch, refuse
from cellvision.compression.distill.adapters import Adapter, build_adapters
from cellvision.compression.distill.cell_lesson import CellLesson, list_missing_of_cells
from cellvision.compression.distill.lesson import Lesson, Manner
from cellvision.compression.distill.map_lesson import MapLesson, list_missing_of_maps
from cellvision.compression.distill.schedule import compute_share
from cellvision.compression.distill.taps import Taps
from cellvision.compression.distill.teacher import Images, Teacher, compute_digest, load_teacher
from cellvision.compression.distill.teacher_cache import TeacherCache
from cellvision.compression.distill.terms import CELL_TERMS, FEATURE_TERMS, LARGEST_WEIGHT, MAP_TERMS, choose_terms
from cellvision.compression.step import Step
from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet
from cellvision.models.centermask2.model import CenterMask2
from cellvision.models.map_net import MapNet
from cellvision.training.phases import BASE
from cellvision.types import Batch

if TYPE_CHECKING:
    from cellvision.compression.run import Run


class Distill(Step):
    """Adds to the net's own losses how far it is from a teacher, each term as "distill_<term>".

    The teacher is no part of the task: it is neither trained nor saved, and found again by its path when a run goes on,
    where its SHA-256 has to be the one it was.
    """

    name = key = "distill"

    def __init__(
        self,
        *,
        teacher: str | Path | None = None,
        epochs: int = 10,
        lr: float = 0.3,
        weight: float = 1.0,
        weights: Mapping[str, float | None] | None = None,
        temperature: float = 2.0,
        channel_temperature: float = 1.0,
        boundary_px: int = 2,
        quality_power: float = 1.0,
        confident: float = 0.3,
        schedule: str = "constant",
        throughout: bool = True,
        cache_mib: float = 0.0,
    ) -> None:
        """Keep the settings.

        Args:
            teacher: a checkpoint, or a bundle of maps; None for the net as it was before the first step of this run.
            epochs: of its phase.
            lr: share of the peak learning rate at which its phase begins.
            weight: of all terms together.
            weights: of single terms, where other than usual (`MAP_TERMS`, `CELL_TERMS`); None is off.
            temperature: see Manner.
            channel_temperature: see Manner.
            boundary_px: see Manner.
            quality_power: see Manner.
            confident: see Manner.
            schedule: of ``weight`` over the epochs taught, see `compute_share`.
            throughout: teach in the phases of all steps of the run, pruning and quantisation too, and not only in its
                own.
            cache_mib: main memory for what the teacher said of images that come again unchanged, see TeacherCache; 0
                asks it each time.

        Raises:
            ConfigError: a setting of another kind or out of range.
        """
        super().__init__(epochs=epochs, lr=lr)
        _check_kinds(teacher, weights)
        check_switch("compress.distill.throughout", throughout)
        check_range("compress.distill.weight", weight, low=0, high=LARGEST_WEIGHT, example=1.0)
        check_range("compress.distill.cache_mib", cache_mib, low=0, example=512)
        compute_share(schedule, 0, 1)
        self.manner = Manner(
            temperature=temperature,
            channel_temperature=channel_temperature,
            boundary_px=boundary_px,
            quality_power=quality_power,
            confident=confident,
        )
        self.path = None if teacher is None else Path(teacher)
        self.weight, self.given, self.schedule, self.throughout = weight, dict(weights or {}), schedule, throughout
        self.cache = TeacherCache(mib=cache_mib) if cache_mib else None
        self.terms: dict[str, float] = {}
        self._adapters: dict[int, Adapter] = {}
        self._teacher: Teacher | None = None
        self._digest: str | None = None
        self._lesson: Lesson | None = None
        self._epoch: int | None = None

    @property
    def state(self) -> dict[str, Any]:
        """Which teacher it was; None before it was first asked."""
        return {"sha256": self._digest}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with the same teacher.

        Raises:
            ConfigError: its file is another one by now.
        """
        if self._digest is not None:
            self._check_digest(state["sha256"], self._digest)
        self._digest = state["sha256"] or self._digest

    def attach(self, run: Run) -> None:
        """Load the teacher, or put it off where this run still has to train it; add the losses and what they need.

        Raises:
            ConfigError: teacher and student do not fit, or a term does not fit them.
        """
        self._run = run
        self._taps = Taps(run.net)
        is_made_in_run = self.path is None and any(phase.name == BASE for phase in run.task.phases)
        if not is_made_in_run:
            self._find_teacher()
        like = run.net if self._teacher is None else self._teacher.net
        usual = CELL_TERMS if isinstance(run.net, CenterMask2) else MAP_TERMS
        self.terms, lines = choose_terms(usual, self.given, _list_missing(run.net, self._teacher))
        for line in lines:
            run.say(line)
        if like is not None and set(FEATURE_TERMS) & self.terms.keys():
            self._adapters = build_adapters(run.net, like)
            run.task.helpers.update({f"distill_stride_{stride}": each for stride, each in self._adapters.items()})
        for term in self.terms:
            run.task.add_loss(f"distill_{term}", self._build_loss(term))

    def begin_epoch(self, run: Run, epoch: int) -> None:
        """Let the checkpoints of its phase, and those after it, tell who taught the net."""
        self._find_teacher()
        run.write_record(
            {
                "step": self.name,
                "teacher": (self.path or run.teacher).name,
                "sha256": self._digest,
                "weight": self.weight,
                "weights": dict(self.terms),
                "schedule": self.schedule,
                "throughout": self.throughout,
            }
        )

    def end_run(self, run: Run) -> None:
        """Take the hooks off the net and let go of the teacher."""
        self._taps.close()
        self._teacher = self._lesson = None

    def _build_loss(self, term: str) -> Any:
        """A function, not a method: averages of weights copy the task with its losses, and would copy the teacher."""
        return lambda net, batch: self._teach(term, net, batch)

    def _teach(self, term: str, net: SegNet, batch: Batch) -> Tensor:
        """The weighted loss of a term for a batch that the net has just been trained on."""
        share = self._find_share()
        if share * self.weight == 0:
            self._taps.take()
            unused = [parameter.sum() * 0 for each in self._adapters.values() for parameter in each.parameters()]
            return torch.stack([batch.images.new_zeros(()), *unused]).sum()  # processes wait for every gradient
        if self._lesson is None or self._lesson.batch is not batch:
            self._lesson = self._begin_lesson(net, batch)
        value = self._lesson.compute(term)
        if term == next(reversed(self.terms)):
            self._lesson = None
        return share * self.weight * self.terms[term] * value

    def _begin_lesson(self, net: SegNet, batch: Batch) -> Lesson:
        teacher, sizes = self._find_teacher(), batch.targets.sizes
        self._tell_cache()
        if self.cache is None:
            told = teacher.look(batch.images, sizes)
        else:
            told = self.cache.look(batch.images, sizes, teacher.look)
        shared: dict[str, Any] = {"batch": batch, "seen": self._taps.take(), "told": told}
        shared |= {"adapters": self._adapters, "manner": self.manner}
        if isinstance(net, MapNet):
            return MapLesson(net=net, **shared)
        assert isinstance(net, CenterMask2)
        assert isinstance(teacher.net, CenterMask2)
        return CellLesson(net=net, teacher=teacher.net, **shared)

    def _find_teacher(self) -> Teacher:
        """The teacher, the same in every process; loaded when it is asked for first."""
        if self._teacher is not None:
            return self._teacher
        run = self._run
        path = self.path or run.teacher
        # The lead comes here after it has written what it trained, and the others read after they have heard of it.
        digest = run.broadcast(compute_digest(path))
        for before, now in ((self._digest, digest), (digest, compute_digest(path))):
            self._check_digest(before, now)
        with_features = bool(set(FEATURE_TERMS) & {name for name, weight in self.given.items() if weight})
        images = Images(channels=run.data.channels, dtypes=run.data.image_dtypes)
        self._teacher = load_teacher(path, run.net, images, with_features=with_features)
        self._digest = digest
        return self._teacher

    def _check_digest(self, before: str | None, now: str) -> None:
        if before is not None and before != now:
            path = self.path or self._run.teacher
            got = f"compress.distill.teacher={path} with SHA-256 {now[:12]}.., which was {before[:12]}.."
            need = "the teacher that the run began with"
            raise ConfigError(explain(got=got, need=need, hint="the same file again, or a new run_dir"))

    def _find_share(self) -> float:
        """Of the weight in this epoch; 0 where nothing is taught."""
        task = self._run.task
        taught = [self.name == phase.name or (self.throughout and phase.name != BASE) for phase in task.phases]
        epochs = [at for phase, is_taught in zip(task.phases, taught, strict=True) for at in [is_taught] * phase.epochs]
        if not any(epochs):
            return compute_share(self.schedule, 0, 1)
        epoch = min(task.current_epoch, len(epochs) - 1)
        if not epochs[epoch]:
            return 0.0
        return compute_share(self.schedule, sum(epochs[:epoch]), sum(epochs))

    def _tell_cache(self) -> None:
        """Tell of the cache when an epoch is over."""
        epoch = self._run.task.current_epoch
        if self.cache is not None and self._epoch not in (None, epoch) and not self.cache.is_given_up:
            self._run.say(self.cache.end_epoch())
        self._epoch = epoch


def _check_kinds(teacher: Any, weights: Any) -> None:
    """Raise ConfigError where the teacher is no path, or the weights have no names."""
    if not isinstance(teacher, str | Path | None) or teacher == "":
        need, example = "a path of a checkpoint or a bundle, or null", "runs/latest/checkpoints/best.ckpt"
        raise refuse("compress.distill.teacher", teacher, need=need, example=example)
    if not isinstance(weights, Mapping | None):
        got, need = f"compress.distill.weights={weights!r}", "a weight for each term to change"
        raise ConfigError(explain(got=got, need=need, hint="compress.distill.weights.features=1.0"))


def _list_missing(student: SegNet, teacher: Teacher | None) -> dict[str, str]:
    """{term: why it cannot be taught}; no teacher stands for one that is the student as it is."""
    if isinstance(student, CenterMask2):
        net = student if teacher is None else teacher.net
        assert isinstance(net, CenterMask2)
        return list_missing_of_cells(student, net)
    assert isinstance(student, MapNet)
    return list_missing_of_maps(student, teacher)
