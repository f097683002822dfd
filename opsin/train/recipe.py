"""A run as one validated value: the model, and the stages that train it. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from opsin.core.errors import ModelError, OpsinError, RecipeError
from opsin.core.paths import ExistingFolder
from opsin.data.costs import Kind
from opsin.data.mixture import check_shares
from opsin.data.plan import Budget
from opsin.data.policy import TooLong
from opsin.data.sources import Source
from opsin.model.config import Lora, ModelConfig, PartName
from opsin.model.pretrained import Value
from opsin.text.templates import Template
from opsin.train.validate import load_config
from opsin.vision.resolution import Resolution

Rate = Annotated[float, Field(gt=0, lt=1)]
PATCHES_PER_TOKEN = 32


class PartPlan(Value):
    """How one part is trained: all its weights, or low-rank adapters on its linear layers."""

    lr: Rate
    weight_decay: float = Field(0.0, ge=0, lt=1)
    lora: Lora | None = None


class Trained(Value):
    """What a stage trains. A part that is not named is frozen."""

    vision: PartPlan | None = None
    connector: PartPlan | None = None
    language: PartPlan | None = None

    @model_validator(mode="after")
    def _something(self) -> Trained:
        if not self.parts:
            raise ValueError("a stage must train at least one of: vision, connector, language")
        return self

    @property
    def parts(self) -> dict[PartName, PartPlan]:
        """The trained parts, in order."""
        named: dict[PartName, PartPlan | None] = {
            "vision": self.vision,
            "connector": self.connector,
            "language": self.language,
        }
        return {name: plan for name, plan in named.items() if plan is not None}


class WarmStart(Value):
    """Point the connector's visual tokens at the words of their captions before step 1 (`opsin.train.warm_start`)."""

    epochs: int = Field(15, ge=1, le=1000)
    lr: Rate = 1e-3


class Stage(Value):
    """One stage: data, what is trained and how fast, and for how long."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=40)
    data: list[Source] = Field(min_length=1, description="the mixture: sources, and how much an epoch takes of each")
    only: list[Kind] | None = Field(None, min_length=1, description="samples of other kinds are left out and counted")
    train: Trained
    template: Template | None = Field(None, description="chat template of this stage; by default the model's")
    resolution: Resolution | None = Field(None, description="of this stage's pictures; by default the model's")
    too_long: TooLong = Field("error", description="what to do with samples over a pack's budgets or the context")
    epochs: float = Field(1.0, gt=0, le=1000)
    steps: int | None = Field(None, ge=1, description="end after so many steps, if not before")
    order: Literal["shuffled", "as_listed", "stream"] = Field(
        "shuffled",
        description="as_listed: all epochs of a source before the next one's, shuffled within each; stream: as the "
        "samples come, shuffled within a window, so that training begins before the sources are read through",
    )
    batch_tokens: int = Field(2048, ge=16, description="tokens of one pack")
    batch_patches: int | None = Field(
        None, ge=1, description="encoder patches of one pack; by default 32 times batch_tokens"
    )
    packs_per_step: int = Field(1, ge=1, description="packs whose gradients are summed before a step")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps over which the rate rises")
    clip: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    cache_features: bool = Field(False, description="compute a frozen encoder's features once, keep them on disk")
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
        if self.warm_start is not None and (self.train.connector is None or not self.cache_features):
            raise ValueError("warm_start needs a stage that trains 'connector' and has cache_features: true")
        if self.cache_features and self.train.vision is not None:
            raise ValueError("cache_features needs a frozen encoder, but this stage trains 'vision'")
        return self


class Recipe(Value):
    """Everything that decides a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80, description="also names the run directory"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first CUDA device, if there is one")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 saves at the end of each stage only")
    keep: int = Field(2, ge=1, description="mid-stage checkpoints that are kept")
    skip_bad: bool = Field(False, description="leave out samples that cannot be used, each named in RUN/skipped.txt")
    model: ModelConfig | None = Field(None, description="the parts of a new model")
    start_from: ExistingFolder | None = Field(
        None, description="a checkpoint of any kind that opsin loads, to train on, in place of 'model'"
    )
    stages: list[Stage] = Field(min_length=1)

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

    `variables` fill `${NAME}` in its texts, by default from the environment.

    Raises:
        RecipeError: every problem at once, each with its line.
    """
    recipe = load_config(path, Recipe, overrides, variables=variables)
    if recipe.model is not None and recipe.start_from is not None:
        raise RecipeError(
            str(path), [f"{path}: give 'model' or 'start_from', not both: a checkpoint has its own parts"]
        )
    key = "model" if recipe.start_from is None else "start_from"
    try:
        model = _resolved(recipe)
    except OpsinError as error:
        raise RecipeError(str(path), [f"{path}: {key}: {error}"]) from None
    if problems := list(_misfits(recipe, model)):
        raise RecipeError(str(path), [f"{path}: {problem}" for problem in problems])
    return recipe.model_copy(update={"model": model})


def _misfits(recipe: Recipe, model: ModelConfig) -> Iterator[str]:
    """Resolutions of stages that the model cannot take."""
    for number, stage in enumerate(recipe.stages):
        if stage.resolution is not None:
            try:
                model.with_resolution(stage.resolution)
            except ModelError as error:
                yield f"stages.{number}.resolution: {error}"


def _resolved(recipe: Recipe) -> ModelConfig:
    if recipe.start_from is None:
        return recipe.composition.resolved()
    from opsin.checkpoint.load import read_model_config  # imports torch, which a new model's recipe does not need

    return read_model_config(recipe.start_from)
