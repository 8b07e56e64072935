"""Train the systems that `baselines` names, each by a step of its own: LLM-SRec, TALLRec, RECFORMER, and the teachers
MoRec and CTRL.

    allmrec train-baselines --config jobs/configs/real-small.yaml

MoRec and CTRL are trained as `train-cf` trains the main teacher, on the same tables, and written to `systems/<name>`.
"""

from functools import partial
from typing import Any

from allmrec.bundle.build import SYSTEMS
from allmrec.cf.teacher import TeacherConfig
from allmrec.llm.adapter import check_peft
from jobs import train_cf
from jobs.config import Config
from jobs.runtime.preflight import Needs
from jobs.runtime.step import Context, Stats, Step, load_step


def steps(config: Config) -> list[Step]:
    """Of the systems that the config names. Raises ValueError where it names none."""
    named = [step_of(name) for name in config.named_teachers]
    if config.recformer is not None:
        named.append(load_step("jobs.train_recformer"))
    if config.tallrec is not None:
        check_peft()  # before other steps spend hours
        named.append(load_step("jobs.train_tallrec"))
    if config.llm_srec is not None:
        named.append(load_step("jobs.train_baselines"))
    if not named:
        known = "set baselines: {llm_srec: {}}, or tallrec, recformer, morec or ctrl"
        raise ValueError(f"`baselines` names no system to train; {known}")
    return named


def step_of(name: str) -> Step:
    """The step that trains a teacher beside the main one."""
    return Step(
        f"train-baselines {name}",
        sections=(),
        inputs=train_cf.STEP.inputs,
        outputs=(SYSTEMS[name],),
        run=partial(run, name),
        plan=partial(plan, name),
        optional_inputs=lambda config: train_cf.texts_of(config.named_teachers[name]),
        external_inputs=partial(external_inputs, name),
        needs=Needs("training", models=lambda config: train_cf.models_of(config.named_teachers[name])),
    )


def run(name: str, context: Context) -> Stats:
    teacher = context.config.named_teachers[name]
    resolved = {"seed": context.config.seed, "teacher": teacher.model_dump(mode="json")}
    target = context.workspace.at(SYSTEMS[name])
    return train_cf.train_into(context, teacher, target, name, f"train-baselines-{name}", resolved)


def plan(name: str, context: Context) -> Stats:
    return train_cf.plan_of(context, context.config.named_teachers[name])


def external_inputs(name: str, context: Context) -> dict[str, Any]:
    """The teacher's config, which is partly the main one's, and what reads histories."""
    teacher: TeacherConfig = context.config.named_teachers[name]
    read = train_cf.read_histories_by(context) if teacher.is_pretrained else {}
    return {"teacher": teacher.model_dump(mode="json", exclude_defaults=True), **read}
