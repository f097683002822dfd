"""A run as one validated value: the model, and the stages that train it. Nothing here imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from opsin.core.errors import ModelError, OpsinError, RecipeError
from opsin.core.packaged import find_recipe
from opsin.core.paths import ExistingFile, ExistingFolder, ExistingStart
from opsin.core.validate import load_config
from opsin.data.costs import Kind
from opsin.data.mixture import check_shares
from opsin.data.plan import Budget
from opsin.data.policy import TooLong
from opsin.data.sources import Source
from opsin.model.config import ModelConfig
from opsin.model.pretrained import Value
from opsin.text.templates import Template
from opsin.train.parts import Rate, Trained, missing_parts
from opsin.vision.resolution import Resolution

PATCHES_PER_TOKEN = 32

Schedule = Literal["cosine", "linear", "constant"]


class Loss(Value):
    """What a supervised token counts.

    `average: token` weighs all supervised tokens of a step alike, `sample` all its samples, and `square_root` a
    sample by the square root of its supervised tokens (InternVL 2.5, 2412.05271, section 4.3).
    """

    average: Literal["token", "sample", "square_root"] = "token"
    z_loss: float = Field(
        default=0.0, ge=0, lt=1, description="weight of log(Z) squared (PaLM, 2204.02311), which keeps it small"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of every target that all tokens get alike"
    )


class Adam(Value):
    """AdamW's constants."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, lt=1)


class Benchmark(Value):
    """Held-out questions that are asked while training goes on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)
    questions: ExistingFile
    image_root: ExistingFolder | None = Field(None, description="by default the questions' own folder")


class Checks(Value):
    """What is measured while training goes on: the loss on data of its own, and small benchmarks."""

    every: int = Field(ge=1, description="steps between two checks; the end of the stage is checked too")
    data: list[Source] | None = Field(None, min_length=1, description="of the validation loss")
    samples: int = Field(256, ge=1, description="the most of them that are read, always the same ones")
    benchmarks: list[Benchmark] = Field(default=[], description="questions that are asked")

    @model_validator(mode="after")
    def _something(self) -> Checks:
        if self.data is None and not self.benchmarks:
            raise ValueError("nothing to check; give data (for a validation loss), benchmarks, or both")
        return self


class WarmStart(Value):
    """Point the connector's visual tokens at the words of their captions before step 1 (`opsin.train.warm_start`)."""

    epochs: int = Field(15, ge=1, le=1000)
    lr: Rate = 1e-3


class Stage(Value):
    """One stage: data, what is trained and how fast, and for how long."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=40, description="also names its checkpoints")
    data: list[Source] = Field(min_length=1, description="the mixture: sources, and how much an epoch takes of each")
    only: list[Kind] | None = Field(None, min_length=1, description="samples of other kinds are left out and counted")
    train: Trained
    template: Template | None = Field(None, description="chat template of this stage; by default the model's")
    resolution: Resolution | None = Field(None, description="of this stage's pictures; by default the model's")
    too_long: TooLong = Field(
        "error", description="what to do with samples over a pack's budgets, the context or longest_sample"
    )
    longest_sample: int | None = Field(
        None, ge=16, description="the most tokens of one sample, where that is less than a pack's: LLaVA's 2048"
    )
    epochs: float = Field(1.0, gt=0, le=1000, description="how often its samples are gone through: 0.5 is half of them")
    steps: int | None = Field(None, ge=1, description="end after so many steps, if not before")
    order: Literal["shuffled", "as_listed", "stream"] = Field(
        "shuffled",
        description="as_listed: all epochs of a source before the next one's, shuffled within each; stream: as the "
        "samples come, shuffled within a window, so that training begins before the sources are read through",
    )
    batch_tokens: int = Field(2048, ge=16, description="the most tokens of one pack")
    batch_patches: int | None = Field(
        None, ge=1, description="encoder patches of one pack; by default 32 times batch_tokens"
    )
    packs_per_step: int = Field(1, ge=1, description="packs whose gradients are summed before a step, by all ranks")
    samples_per_step: int | None = Field(
        None, ge=1, description="in place of packs_per_step: a batch size in samples, in as many packs as they need"
    )
    schedule: Schedule = Field("cosine", description="how the rate falls after warmup")
    least_rate: float = Field(0.0, ge=0, le=1, description="share of the peak that the rate falls to")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps over which the rate rises")
    warmup_steps: int | None = Field(None, ge=0, description="in place of warmup: their number")
    clip: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    adam: Adam = Adam()
    loss: Loss = Loss()
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="compute layers again in the backward pass: all but matrix products and attention, or all"
    )
    non_finite_steps: int = Field(
        3, ge=1, description="stop when so many steps were skipped, because the loss or a gradient is not finite"
    )
    checks: Checks | None = Field(None, description="validation loss and benchmarks while training goes on")
    cache_features: bool = Field(False, description="compute a frozen encoder's features once, keep them on disk")
    cache_limit_gb: float = Field(50.0, gt=0, description="the most that the features of a model and resolution take")
    workers: int = Field(0, ge=0, le=256, description="processes that read samples, and decode pictures ahead of it")
    worker_timeout: float = Field(300.0, gt=0, description="seconds after which a worker without its pack has hung")
    warm_start: WarmStart | None = None

    @property
    def budget(self) -> Budget:
        """The most that one pack holds."""
        # However few tokens a connector makes of a picture, a pack's pictures stay within memory.
        return Budget(self.batch_tokens, self.batch_patches or PATCHES_PER_TOKEN * self.batch_tokens)

    @property
    def sources(self) -> dict[str, Source]:
        """The sources by their names: their own, or that of the file, with a number where two have the same."""
        names = [source.name or source.path.stem for source in self.data]
        return {
            name if names.count(name) == 1 else f"{name}-{names[: i + 1].count(name)}": source
            for i, (name, source) in enumerate(zip(names, self.data, strict=True))
        }

    @model_validator(mode="after")
    def _mixture_fits(self) -> Stage:
        check_shares(self.data)
        if len(self.sources) < len(self.data):
            raise ValueError("two sources have the same name; give each a 'name' of its own")
        return self

    @model_validator(mode="after")
    def _can_stream(self) -> Stage:
        if self.order != "stream":
            return self
        if self.steps is None:
            raise ValueError("order: stream has no end of its own; give steps")
        if self.epochs != 1.0:
            raise ValueError("order: stream has no epochs; give steps alone")
        if self.cache_features:
            raise ValueError("order: stream and cache_features do not go together: features are computed before step 1")
        if any(s.weight or s.number or s.pick != "random" or (len(self.data) > 1 and not s.share) for s in self.data):
            raise ValueError("order: stream mixes by share; give every source a share, and no weight, number or pick")
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> Stage:
        if self.least_rate and self.schedule == "constant":
            raise ValueError("least_rate is where a falling schedule ends, but 'schedule: constant' does not fall")
        if self.samples_per_step is not None and self.packs_per_step != 1:
            raise ValueError("give packs_per_step or samples_per_step, not both")
        if self.samples_per_step is not None and self.order == "stream":
            raise ValueError("order: stream counts steps in packs; give packs_per_step")
        if self.warm_start is not None and not (self.train.trains("connector") and self.cache_features):
            raise ValueError("warm_start needs a stage that trains 'connector' and has cache_features: true")
        if self.cache_features and self.train.trains("vision"):
            raise ValueError("cache_features needs a frozen encoder, but this stage trains 'vision'")
        return self


class Parallel(Value):
    """How processes (ranks), one to a device, share the work; started by `torchrun --nproc-per-node N -m opsin train`.

    Each rank makes its share of a step's packs. `full` divides weights, gradients and the optimiser's state among all
    ranks (FSDP2), `hybrid` among those of a group of `group_size`, with copies in the other groups, `none` copies them
    all. `auto` is `full` for more than one rank.
    """

    sharding: Literal["auto", "none", "full", "hybrid"] = "auto"
    group_size: int | None = Field(
        default=None, ge=2, description="of hybrid sharding; by default the ranks of one machine"
    )
    cpu_offload: bool = Field(default=False, description="keep sharded weights and optimiser state in CPU memory")
    timeout: float = Field(
        default=600.0, gt=0, description="seconds after which a rank that does not answer is given up"
    )

    @model_validator(mode="after")
    def _fits(self) -> Parallel:
        if self.group_size is not None and self.sharding != "hybrid":
            raise ValueError("group_size is for sharding: hybrid")
        if self.cpu_offload and self.sharding == "none":
            raise ValueError("cpu_offload needs sharding: full or hybrid")
        return self


class Recipe(Value):
    """Everything that decides a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80, description="also names the run directory"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of every random draw: new weights, the samples' order, dropout")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="of the computation; weights that learn are kept in fp32 either way"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first CUDA device, if there is one")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 saves at the end of each stage only")
    keep: int = Field(2, ge=1, description="mid-stage checkpoints that are kept, the newest ones")
    keep_every: int | None = Field(None, ge=1, description="keep those of every so many steps as well")
    save_in_background: bool = Field(True, description="train on while a checkpoint is written")
    on_save_error: Literal["stop", "continue"] = Field(
        "stop", description="what to do when a mid-stage checkpoint cannot be saved; the end of a stage always stops"
    )
    compile: bool = Field(False, description="compile the language model's layers; pays on GPUs, for long runs")
    parallel: Parallel = Parallel()
    tensorboard: bool = Field(False, description="write RUN/tensorboard as well, with the extra 'track'")
    skip_bad: bool = Field(False, description="leave out samples that cannot be used, each named in RUN/skipped.txt")
    model: ModelConfig | None = Field(None, description="the parts of a new model")
    start_from: ExistingStart | None = Field(
        None,
        description="a checkpoint of any kind that opsin loads, to train on, in place of 'model'; RUN#STAGE is the end "
        "of a run's stage",
    )
    stages: list[Stage] = Field(min_length=1, description="trained one after the other")

    @property
    def composition(self) -> ModelConfig:
        """The model's parts: `model`, which `load_recipe` fills from the checkpoint where there is one."""
        if self.model is None:
            raise ModelError(f"{self.start_from}: not read yet; load the recipe with load_recipe")
        return self.model

    @model_validator(mode="after")
    def _has_model(self) -> Recipe:
        if self.model is None and self.start_from is None:
            raise ValueError("give either 'model' (the parts of a new one) or 'start_from' (a checkpoint)")
        return self

    @model_validator(mode="after")
    def _distinct_stages(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stage names must differ; used more than once: {', '.join(twice)}")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = (), *, variables: Mapping[str, str] | None = None) -> Recipe:
    """Read, validate and resolve a recipe; file paths in it are relative to the recipe's folder.

    `path` may be the name of a packaged recipe, whose paths are relative to the working directory. An override of
    `start_from` takes the place of the recipe's model. `variables` fill `${NAME}` in its texts, by default from the
    environment.

    Raises:
        RecipeError: every problem at once, each with its line.
    """
    path, folder = find_recipe(path)
    if any(override.startswith("start_from=") for override in overrides):
        overrides = ["model=null", *overrides]
    recipe = load_config(path, Recipe, overrides, variables=variables, folder=folder)
    if recipe.model is not None and recipe.start_from is not None:
        raise RecipeError(
            str(path), [f"{path}: give 'model' or 'start_from', not both: a checkpoint has its own parts"]
        )
    key = "model" if recipe.start_from is None else "start_from"
    try:
        recipe = _found(recipe)
        model = _resolved(recipe)
    except OpsinError as error:
        raise RecipeError(str(path), [f"{path}: {key}: {error}"]) from None
    if problems := list(_misfits(recipe, model)):
        raise RecipeError(str(path), [f"{path}: {problem}" for problem in problems])
    return recipe.model_copy(update={"model": model})


def _misfits(recipe: Recipe, model: ModelConfig) -> Iterator[str]:
    """What stages ask for that the model cannot give: parts and layers to train, resolutions."""
    for number, stage in enumerate(recipe.stages):
        yield from (f"stages.{number}.train.{problem}" for problem in missing_parts(stage.train, model))
        if stage.resolution is not None:
            try:
                model.with_resolution(stage.resolution)
            except ModelError as error:
                yield f"stages.{number}.resolution: {error}"


def only_stages(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with some of its stages, in its own order.

    Raises:
        RecipeError: it has no stage of such a name, or a new model would miss the stages before.
    """
    known = [stage.name for stage in recipe.stages]
    problems = [_no_stage(name, known) for name in names if name not in known]
    if not problems and known[0] not in names and recipe.start_from is None:
        problems = [
            f"without {known[0]!r} the stages would train a new model, whose connector has learned nothing; give "
            "start_from=RUN#STAGE, the end of a stage of another run"
        ]
    if problems:
        raise RecipeError(recipe.name, problems)
    return recipe.model_copy(update={"stages": [stage for stage in recipe.stages if stage.name in names]})


def _no_stage(name: str, known: Sequence[str]) -> str:
    """What to say of a name that no stage has."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
    return f"{name!r}: the recipe has no such stage; {hint}"


def _found(recipe: Recipe) -> Recipe:
    """The recipe with the very checkpoint that it starts from, where it names a stage of a run."""
    run, mark, stage = str(recipe.start_from or "").rpartition("#")
    if not mark or (recipe.start_from is not None and recipe.start_from.exists()):
        return recipe
    from opsin.train.beginning import stage_end  # imports torch, as below

    return recipe.model_copy(update={"start_from": stage_end(Path(run), stage)})


def _resolved(recipe: Recipe) -> ModelConfig:
    if recipe.start_from is None:
        return recipe.composition.resolved()
    from opsin.checkpoint.load import read_model_config  # imports torch, which a new model's recipe does not need

    return read_model_config(recipe.start_from)
