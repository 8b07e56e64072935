"""The runs that `benchmarks.paper` compares: the workspace of each system's results, and how it is computed.

A config's own run has A-LLMRec, its teacher and what `baselines` names. Other teachers, MLP-LLM and the rows of the
ablations are runs of their own over its prepared tables, as far as they differ from it; another split is prepared, too.
What is read from them is left to `paper_tables`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from allmrec.bundle.description import DESCRIPTION, read_description
from allmrec.cf.teacher import TeacherConfig, load_teacher
from allmrec.core.artifacts import find_manifest, read_manifest
from allmrec.core.hashing import fingerprint
from allmrec.core.workspace import Workspace
from allmrec.data.evaluation_cases import BUILT_IN
from benchmarks.comparison import systems_of
from benchmarks.paper_ablations import ABLATIONS
from benchmarks.paper_numbers import ALLMREC, MLP_LLM, TEACHERS, UNTRAINED
from benchmarks.runs import PREPARED, SHARED, ConfigRuns, link
from benchmarks.teacher_alone import evaluate_alone
from jobs import bundle, embed, evaluate, prepare, train_alignment, train_cf, train_projection
from jobs.config import Config
from jobs.pipeline import model_steps, ordered
from jobs.runtime.console import Console
from jobs.runtime.step import Step, resolved

TEACHER = "teacher"
Source = tuple[Workspace, str]  # a run, and the system's name in it
ALONE = "alone"  # folder of a run in which only the teacher was evaluated
# A run of A-LLMRec alone.
EVALUATED = ["baselines=null", f"evaluation.systems=[{ALLMREC}, {UNTRAINED}]", f"evaluation.baseline={UNTRAINED}"]
OF_TEACHER = ["baselines=null", f"evaluation.systems=[{TEACHER}, {ALLMREC}]", f"evaluation.baseline={TEACHER}"]


class PaperRuns(ConfigRuns):
    """A config's run, and the runs that are compared with it.

    Args:
        shared: folders of other configs' workspaces to use, by name; by default none.
    """

    def __init__(
        self,
        path: Path,
        overrides: list[str],
        root: Path,
        console: Console,
        shared: Mapping[str, Config] = MappingProxyType({}),
    ):
        super().__init__(path, overrides, root, console)
        self.shared = shared
        self.teacher = teacher_name(self.base.teacher)

    def finished(self) -> Workspace:
        """The config's own run, completed if its figures are missing or belong to another config."""
        if is_evaluated(self.base):
            return self.base.workspace
        return self._make(*ordered([step.under(self.base) for step in (*model_steps(self.base), evaluate.STEP)]))

    def prepared(self) -> Workspace:
        """The config's tables; prepared if they are missing."""
        return self._make() if self._has(PREPARED) else self._make(prepare.STEP, embed.STEP)

    def sources(self, wanted: Sequence[str]) -> dict[str, Source]:
        """The workspace of each system's results, for the systems that the config names."""
        finished, sources = self.finished(), dict[str, Source]()
        own = {self.teacher if system == TEACHER else system: system for system in systems_of(finished)}
        for name in wanted:
            if name in own:
                sources[name] = finished, own[name]
            elif name in TEACHERS:
                sources[name] = self.with_teacher(name).teacher_alone(), TEACHER
            elif name == MLP_LLM:
                changes = [*ABLATIONS["9"]["MLP-LLM"], f"seed={self.base.seed}"]  # as Table 9 has it
                sources[name] = self.row(changes), ALLMREC
        return sources

    def row(self, changes: list[str]) -> Workspace:
        """A-LLMRec with some keys changed, trained from where it differs from the config's own run over its teacher.

        That run itself if it has these keys. The row's untrained projectors are evaluated as well.
        """
        if not self._has(SHARED):
            self.prepared()
            self._make(train_cf.STEP)
        config = self.changed(f"{self.base.name}-row-{fingerprint(changes)[:8]}", [*changes, *EVALUATED])
        kept = self._was_made_with(config, Workspace.alignment)
        same = kept and self._was_made_with(config, Workspace.projectors)
        if same and self._was_made_with(self.base, Workspace.evaluation):
            return self.base.workspace
        link(config, dict.fromkeys((*SHARED, Workspace.alignment) if kept else SHARED, self.base))
        steps = (train_projection.STEP, bundle.STEP, evaluate.STEP)
        return self.made(config, steps if kept else (train_alignment.STEP, *steps))

    def seeded(self, seed: int) -> "PaperRuns":
        """Everything trained with another seed, over the same tables."""
        return self if seed == self.base.seed else self.over_tables(f"seed-{seed}", [f"seed={seed}"])

    def with_teacher(self, model: str) -> "PaperRuns":
        """A-LLMRec over another teacher, and nothing beside it."""
        changes = [f"teacher.model={model}", "teacher.items=ids", "teacher.pretraining=null", *OF_TEACHER]
        if model == "ncf":
            changes.append("projection.start=ordinary")  # its score is no product to start from
        return self.over_tables(f"teacher-{model}", changes)

    def over_tables(self, name: str, changes: list[str]) -> "PaperRuns":
        """The config with some keys changed, as a run of its own over the same tables."""
        self.prepared()
        return self.under(name, changes, dict.fromkeys(PREPARED, self.base))

    def under(self, name: str, changes: list[str], shared: Mapping[str, Config] | None = None) -> "PaperRuns":
        """The config with some keys changed, as a run of its own; by default with its own tables."""
        overrides = [*self.overrides, *changes, f"name={self.base.name}-{name}", f"root={self.root}"]
        texts = {Workspace.text_cache: self.base}  # every text is encoded once
        return PaperRuns(self.path, overrides, self.root, self.console, shared or texts)

    def limited(self, wanted: Sequence[str]) -> list[str]:
        """The keys by which these systems are trained and evaluated, beside the teacher, and no others."""
        beside = self.base.systems_beside
        systems = [TEACHER, *[name for name in (*BUILT_IN, *beside) if name in wanted]]
        dropped = [f"baselines.{name.replace('-', '_')}=null" for name in beside if name not in wanted]
        return [*dropped, f"evaluation.systems=[{', '.join(systems)}]", f"evaluation.baseline={TEACHER}"]

    def teacher_alone(self) -> Workspace:
        """Train and evaluate the run's teacher, and nothing else."""
        workspace = self._make(train_cf.STEP)
        identity, recall_at = read_manifest(workspace.teacher).digest, self.base.nightly.num_candidates
        teacher, storage = load_teacher(workspace.teacher), workspace.storage.at(ALONE)
        return evaluate_alone(teacher, identity, workspace, storage, recall_at)

    def _make(self, *steps: Step) -> Workspace:
        """Run steps of the config except those whose outputs are shared."""
        if self.shared:
            link(self.base, self.shared)
        return self.made(self.base, [step for step in steps if self.shared.keys().isdisjoint(step.outputs)])

    def _has(self, artifacts: Iterable[str]) -> bool:
        return all(find_manifest(self.base.workspace.at(name)) for name in artifacts)

    def _was_made_with(self, config: Config, artifact: str) -> bool:
        """Whether an artifact of the config's own run was made with another config's settings."""
        manifest = find_manifest(self.base.workspace.at(artifact))
        if manifest is None:
            return False
        return manifest.config == resolved(config, tuple(name for name in manifest.config if name != "seed"))


def teacher_name(teacher: TeacherConfig) -> str:
    if teacher.items == "text":
        return "morec"
    return "ctrl" if teacher.is_pretrained else teacher.model


def is_evaluated(config: Config) -> bool:
    """Whether a workspace holds figures of its current cases and of models made with this config."""
    workspace = config.workspace
    evaluation, results = find_manifest(workspace.evaluation), find_manifest(workspace.evaluation_results)
    cases = find_manifest(workspace.evaluation_cases)
    if evaluation is None or results is None or cases is None:
        return False
    version = evaluation.stats["bundle"]
    if not workspace.bundles.at(version).exists(DESCRIPTION):
        return False
    return bool(
        results.stats["cases"] == cases.digest
        and evaluation.config == resolved(config, evaluate.STEP.sections)
        and read_description(workspace.storage, version)["config"] == resolved(config, bundle.SECTIONS)
    )
