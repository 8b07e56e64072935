"""The whole config: one YAML file a deployment, sections defined next to what they configure."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, model_validator

from allmrec.alignment.network import AlignmentConfig
from allmrec.bundle.build import BundleConfig
from allmrec.cf.teacher import TeacherConfig, teacher_beside
from allmrec.core.settings import Section, one_line, read_settings
from allmrec.core.storage import S3Config, open_storage
from allmrec.core.storage.s3 import store_environment
from allmrec.core.tracking import MLflowConfig
from allmrec.core.workspace import Workspace
from allmrec.data.config import DataConfig
from allmrec.data.evaluation_cases import EvaluationConfig
from allmrec.explain.answers import ExplainConfig
from allmrec.llm.loading import LLMConfig
from allmrec.llm.prompt import PromptConfig
from allmrec.nightly.config import NightlyConfig
from allmrec.projection.projectors import ProjectionConfig
from allmrec.projection.tallrec import TALLRecConfig
from allmrec.readout.network import ReadoutConfig
from allmrec.recformer.config import RecformerConfig
from allmrec.retention import RetentionConfig
from allmrec.text.encoder import TextConfig


class WorkersConfig(Section):
    """Ray's share: how many workers train and score, and what each holds."""

    num_workers: int = Field(2, ge=1)  # of training, and the most that a pool of scoring workers grows to
    # A verb starts once the cluster has room for this many, and training continues with no fewer; null: it starts with
    # num_workers, and continues with what a cluster that has lost nodes has room for.
    min_workers: int | None = Field(None, ge=1)
    cpus_per_worker: float = Field(1, gt=0)  # that Ray reserves; also the threads of PyTorch in a worker
    # That Ray reserves; 0 runs on CPUs. In a nightly run the LLM is cut over the GPUs of a worker that has several.
    gpus_per_worker: float = Field(0, ge=0)
    # How long a verb waits until the cluster has room for its workers, at the start or when nodes were lost.
    resources_timeout_s: float = Field(900, gt=0)
    # Failures that a verb recovers from: of workers in training, of shards in a nightly run.
    max_failures: int = Field(3, ge=0)
    object_store_mb: int | None = Field(None, ge=80)  # shared memory of a local Ray; null: Ray's default


class BaselinesConfig(Section):
    """Systems that are trained beside A-LLMRec: those whose key is there; `llm_srec: {}` is one with its defaults."""

    llm_srec: ReadoutConfig | None = None  # LLM-SRec; null: not trained
    tallrec: TALLRecConfig | None = Field(None, exclude_if=lambda config: config is None)  # TALLRec; null: not trained
    # MoRec; null: not trained. Keys that are left out are those of `teacher`, unless model or preset is named.
    morec: TeacherConfig | None = Field(None, exclude_if=lambda teacher: teacher is None)
    ctrl: TeacherConfig | None = Field(None, exclude_if=lambda teacher: teacher is None)  # CTRL, likewise
    recformer: RecformerConfig | None = Field(None, exclude_if=lambda own: own is None)  # RECFORMER; null: not trained


class Config(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # the workspace's name
    root: str = "runs"  # folder or s3:// prefix of all workspaces; this one is <root>/<name>
    seed: int = 0  # of every random draw; the same seed gives the same result for any number of workers
    data: DataConfig = DataConfig()  # the input tables, and which of their rows are used
    text: TextConfig = TextConfig()  # the text encoder
    teacher: TeacherConfig = TeacherConfig()  # the collaborative filtering model
    alignment: AlignmentConfig = AlignmentConfig()  # Stage-1
    llm: LLMConfig = LLMConfig()  # the frozen LLM
    prompt: PromptConfig = PromptConfig()  # the prompt's wording and length
    projection: ProjectionConfig = ProjectionConfig()  # Stage-2
    baselines: BaselinesConfig | None = None  # other systems; null: none
    bundle: BundleConfig = BundleConfig()  # what `bundle build` puts together
    nightly: NightlyConfig = NightlyConfig()  # the nightly run
    retention: RetentionConfig = RetentionConfig()  # what `expire` keeps
    evaluation: EvaluationConfig = EvaluationConfig()  # the split, the test cases and the systems compared
    explain: ExplainConfig = ExplainConfig()  # the favourite-genre task
    mlflow: MLflowConfig | None = None  # where trainings are recorded; null: nowhere
    workers: WorkersConfig = WorkersConfig()  # Ray's workers
    storage: S3Config = S3Config()  # the object store

    @property
    def llm_srec(self) -> ReadoutConfig | None:
        """How LLM-SRec is trained, if it is."""
        return None if self.baselines is None else self.baselines.llm_srec

    @property
    def tallrec(self) -> TALLRecConfig | None:
        """How TALLRec is trained, if it is."""
        return None if self.baselines is None else self.baselines.tallrec

    @property
    def recformer(self) -> RecformerConfig | None:
        """How RECFORMER is trained, if it is."""
        return None if self.baselines is None else self.baselines.recformer

    @property
    def named_teachers(self) -> dict[str, TeacherConfig]:
        """The teachers that are trained beside the main one, by the system's name."""
        named = self.baselines or BaselinesConfig()
        wanted = {"morec": named.morec, "ctrl": named.ctrl}
        return {name: teacher_beside(name, own, self.teacher) for name, own in wanted.items() if own is not None}

    @property
    def systems_beside(self) -> tuple[str, ...]:
        """All systems that are trained beside A-LLMRec."""
        others = {"recformer": self.recformer, "tallrec": self.tallrec, "llm-srec": self.llm_srec}
        return (*self.named_teachers, *[name for name, config in others.items() if config is not None])

    @model_validator(mode="after")
    def _named_teachers_are_sequential(self) -> "Config":
        try:
            assert self.named_teachers is not None
        except ValidationError as error:
            raise ValueError(f"baselines: {one_line(error)}") from None
        return self

    @property
    def workspace_uri(self) -> str:
        return f"{self.root.rstrip('/')}/{self.name}"

    @property
    def output_uri(self) -> str:
        """Where nightly runs publish."""
        return self.nightly.output or f"{self.workspace_uri}/{Workspace.recommendations}"

    @property
    def workspace(self) -> Workspace:
        output = self.nightly.output
        elsewhere = {} if output is None else {Workspace.recommendations: open_storage(output, self.storage)}
        return Workspace(open_storage(self.workspace_uri, self.storage), elsewhere)


C = TypeVar("C", bound=Config)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """As `load_config_as`, of the product's config."""
    return load_config_as(Config, path, overrides)


def load_config_as(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and apply `--set` overrides.

    Raises:
        ValueError: no such file, or a key or value that is not valid; one line, naming it.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"no config at {path}; the shipped ones are in jobs/configs/") from None
    except OSError as error:
        raise ValueError(f"cannot read the config {path}: {error.strerror}") from None
    try:
        config = kind(**read_settings(text, overrides))
    except ValidationError as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    os.environ.update(store_environment(config.storage))  # for what opens s3:// by its URI alone
    return config
