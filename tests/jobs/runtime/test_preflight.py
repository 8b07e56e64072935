"""What a verb needs is checked before it writes anything, and what is not there yet is waited for, not in silence."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from allmrec.core.errors import JobTimeout
from allmrec.core.host import Host, look
from allmrec.core.storage import S3Config, Storage
from jobs import bundle, embed, evaluate, pipeline, prepare, train_cf, train_projection
from jobs.config import Config
from jobs.nightly import nightly, nightly_step
from jobs.runtime import preflight, resources
from jobs.runtime.console import Console
from jobs.runtime.preflight import Needs, check_models, doubts, refuse, refuse_local_folders
from jobs.runtime.resources import Resources, Watch, guarded, watching
from jobs.runtime.step import Step, execute
from tests.jobs.test_nightly import DATE, with_nightly
from tests.s3_fixtures import IgnoresConditions, new_bucket, proxied

GB = 1 << 30
QUIET = Console(log_json=True)


def node(name: str = "a", alive: bool = True, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerAddress": f"10.0.0.{ord(name)}",
        "NodeManagerHostname": name,
        "Alive": alive,
        "Resources": {"memory": 4.0 * GB, **resources},
    }


def config(root: str | Path = "s3://bucket/root", **sections: Any) -> Config:
    return Config(name="test", root=str(root), **sections)


def test_a_group_that_does_not_divide_the_workers_is_refused_before_the_first_step(tmp_path: Path) -> None:
    settings = config(tmp_path, workers={"num_workers": 3}, llm={"hpz_group": 2})
    with pytest.raises(ValueError, match=r"llm\.hpz_group 2 does not divide workers\.num_workers 3"):
        pipeline.run(settings, QUIET, DATE)
    assert not list(tmp_path.iterdir()), "prepare has not begun"
    refuse(train_cf.STEP.needs, settings)  # has no LLM
    refuse(
        train_projection.STEP.needs, config(llm={"hpz_group": 2, "placement": "replicated"}, workers={"num_workers": 3})
    )


def test_too_few_shards_for_the_workers_are_told() -> None:
    settings = config(data={"num_shards": 2}, workers={"num_workers": 5})
    for step in (prepare.STEP, evaluate.STEP):
        (doubt,) = doubts(step.needs, settings)
        assert doubt.startswith("data.num_shards 2 is less than twice workers.num_workers 5: ")
        assert doubt.endswith("set data.num_shards to 10 or more")
        assert not list(doubts(step.needs, config(data={"num_shards": 10}, workers={"num_workers": 5})))
    for step in (embed.STEP, train_cf.STEP, bundle.STEP):
        assert not list(doubts(step.needs, settings)), "shards are not what their workers take"


def test_what_verbs_start_with_and_go_on_with() -> None:
    workers = {"num_workers": 4, "cpus_per_worker": 2, "gpus_per_worker": 1}
    settings = config(data={"num_shards": 3}, workers=workers)
    fewer = config(data={"num_shards": 3}, workers={**workers, "min_workers": 2})
    train, score = train_cf.STEP.needs, evaluate.STEP.needs
    assert prepare.STEP.needs.start(settings) == Resources(1, 1, 0)
    assert [train.start(settings).count, train.least(settings).count] == [4, 1]
    assert [train.start(fewer).count, train.least(fewer).count] == [2, 2]
    assert [score.start(settings).count, score.least(settings).count] == [3, 1], "of the shards"
    assert [score.start(fewer).count, score.least(fewer).count] == [2, 1]
    assert score.start(settings).bundle == {"CPU": 2, "GPU": 1}


def test_folders_of_one_machine_are_refused_on_several(tmp_path: Path) -> None:
    two = [node("a", CPU=1), node("b", CPU=1)]
    with pytest.raises(ValueError, match="is a folder, and the cluster has 2 machines"):
        refuse_local_folders(Needs("tasks"), config(tmp_path), two)
    refuse_local_folders(Needs("tasks"), config(tmp_path), [node("a"), node("a")])  # two nodes on one machine
    refuse_local_folders(Needs("tasks"), config(), two)
    output = config(nightly={"output": str(tmp_path)})
    needs = nightly_step(output, DATE, full=False, limit=None, replace=False, made_before=[]).needs
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder"):
        refuse_local_folders(needs, output, two)


def test_the_store_is_probed_before_a_verb_writes(moto_endpoint: str) -> None:
    honest = S3Config(endpoint_url=moto_endpoint, region="us-east-1", addressing_style="path")
    s3_uri = new_bucket(honest)
    written = []
    step = Step("any", (), (), (), run=lambda context: written.append(1) or {}, plan=lambda context: {})
    with proxied(honest, IgnoresConditions) as s3, pytest.raises(ValueError, match="does not honour put-if-absent"):
        execute(step, config(s3_uri, storage=s3), QUIET)
    with pytest.raises(ValueError, match="there is no bucket"):
        execute(step, config("s3://no-such-bucket/x", storage=honest), QUIET)
    with pytest.raises(ValueError, match="cannot write there"):
        execute(step, config("/proc/none"), QUIET)
    assert not written
    execute(step, config(s3_uri, storage=honest), QUIET)
    assert written


def hosts(**found: Host) -> Callable[[Any, list[str]], Host]:
    return lambda node, folders: found[node["NodeID"]]


def test_a_model_s_folder_is_on_every_node_with_workers(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    folder = str(tmp_path / "encoder")
    settings = config(text={"model": folder})
    needs, nodes = embed.STEP.needs, [node("a", CPU=0), node("b", CPU=2)]
    requested = needs.start(settings)
    with pytest.raises(ValueError, match=f"{folder} is a folder of this machine, and b has none"):
        check_models(needs, settings, requested, nodes, hosts(b=Host((folder,), None)))
    check_models(needs, settings, requested, nodes, hosts(b=look([folder])))
    check_models(needs, config(text={"model": "hub/name"}), requested, nodes, hosts(b=look([])))


def test_the_llm_fits_into_the_workers_memory(tiny_bundle: tuple[Config, Storage, str]) -> None:
    settings = tiny_bundle[0].model_copy(
        update={"workers": tiny_bundle[0].workers.model_copy(update={"num_workers": 2})}
    )
    score, train, none = evaluate.STEP.needs, train_projection.STEP.needs, hosts(a=Host((), None))
    for needs in (score, train):
        check_models(needs, settings, Resources(2), [node(CPU=2)], none)
        with pytest.raises(ValueError, match=r"needs \d+ MB in each worker, and a has \d MB for each of 2"):
            check_models(needs, settings, Resources(2), [node(CPU=2, memory=1000)], none)
    small = hosts(a=Host((), 1000))
    with pytest.raises(ValueError, match="for each of 1"):
        check_models(score, settings, Resources(2, 1, 1), [node(CPU=2, GPU=1)], small)
    teacher = settings.model_copy(update={"nightly": settings.nightly.model_copy(update={"ranker": "teacher"})})
    needs = nightly_step(teacher, DATE, full=False, limit=None, replace=False, made_before=[]).needs
    check_models(needs, teacher, Resources(2), [node(CPU=2, memory=1000)], none)


def test_nothing_of_a_run_is_written_before_the_preflight(
    in_process: None, tiny_workspace: tuple[Config, Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise JobTimeout("no room")

    monkeypatch.setattr(preflight, "_on_ray", no_room)
    with pytest.raises(JobTimeout, match="no room"):
        nightly(with_nightly(tiny_workspace[0], output=str(tmp_path / "out")), QUIET, DATE)
    assert not list((tmp_path / "out").iterdir())


def test_nodes_that_are_lost_while_a_verb_works_are_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = [node("a", CPU=1), node("b", CPU=1)]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    for name, seconds in {"_LOOK_S": 0.02, "_TELL_S": 0.1}.items():
        monkeypatch.setattr(resources, name, seconds)

    def results(lost: int) -> Any:
        yield "first"
        for gone in range(lost):
            there[gone] = node("ab"[gone], alive=False, CPU=1)
        if lost == 2:
            time.sleep(10)
        yield "second"

    watch = Watch(Resources(1), QUIET, timeout_s=0.5)
    with watching(watch):
        assert [*guarded(results(1))] == ["first", "second"], "one node is enough"
        assert capsys.readouterr().out == ""
        with pytest.raises(JobTimeout, match=r"s for 1 CPU \(0 in the cluster\)"):
            list(guarded(results(2)))
    told = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert len(told) > 2 and {*told} == {"waiting for 1 CPU (0 in the cluster)"}
    assert [*guarded(iter("ab"))] == ["a", "b"], "without a watch"
