"""What a verb needs beside its inputs, checked before it writes anything: config, store, cluster, models.

A step says what it needs (`Needs`); what is wrong ends it in one line, and what is not there yet is waited for.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from allmrec.core.host import Host, look
from allmrec.core.storage import LocalStorage, Storage
from allmrec.core.tracking import check as check_mlflow
from allmrec.data.config import least_shards
from jobs.config import Config
from jobs.runtime.console import Console

if TYPE_CHECKING:
    from jobs.runtime.resources import Resources

_LARGEST_GROWTH = 4  # of a weight in loading: from float8 to float32

Model = Literal["llm", "text", "recformer"]  # the section that names it


@dataclass(frozen=True)
class Needs:
    """What a verb needs."""

    # Where its work is done: on the driver alone, in Ray's tasks of one CPU, by a pool of workers, or by workers that
    # train together.
    work: Literal["driver", "tasks", "pool", "training"] = "driver"
    models: Callable[[Config], tuple[Model, ...]] = lambda config: ()  # that its workers load
    writes: Callable[[Config], tuple[Storage, ...]] = lambda config: ()  # beside the workspace
    cuts_llm: bool = False  # whether a worker with several GPUs cuts the LLM over them
    blocks: Callable[[Config], int] = lambda config: config.data.num_shards  # that a pool's workers take one by one

    def start(self, config: Config) -> "Resources":
        """What it starts with."""
        from jobs.runtime.resources import Resources

        workers = config.workers
        if self.work == "tasks":
            return Resources(1)
        count = min(workers.min_workers or workers.num_workers, workers.num_workers)
        count = count if self.work == "training" else min(count, self.blocks(config))
        return Resources(count, workers.cpus_per_worker, workers.gpus_per_worker)

    def least(self, config: Config) -> "Resources":
        """What it continues with when nodes are lost."""
        start = self.start(config)
        count = min(config.workers.min_workers or 1, start.count) if self.work == "training" else 1
        return type(start)(count, start.cpus, start.gpus)


DRIVER = Needs()
ONE_TASK = Needs("tasks", blocks=lambda config: 1)  # for what grows with the items; the driver waits


def preflight(needs: Needs, config: Config, console: Console) -> AbstractContextManager[None]:
    """Check a verb's needs and wait for its resources; what comes back watches them while the verb works.

    Raises:
        ValueError: something that the user can mend.
        JobTimeout: the resources did not come.
    """
    refuse(needs, config)
    for doubt in doubts(needs, config):
        console.warning(doubt)
    for storage in (config.workspace.storage, *needs.writes(config)):
        probe(storage)
    if needs.work == "driver":
        return nullcontext()
    return _on_ray(needs, config, console)


def refuse(needs: Needs, config: Config) -> None:
    """Raises ValueError for a config that cannot work, whatever the cluster is like."""
    if needs.work == "training":
        check_mlflow(config.mlflow)
    workers, llm, gpus = config.workers.num_workers, config.llm, int(config.workers.gpus_per_worker)
    if needs.cuts_llm and gpus > 1 and "llm" in needs.models(config):
        from allmrec.llm.tensor_parallel import refuse_without_plan

        refuse_without_plan(llm, gpus)
        if config.nightly.ranker == "tallrec":
            raise ValueError(
                f"workers.gpus_per_worker {gpus}: TALLRec's weights are not cut over several GPUs; set it to 1, or "
                "nightly.ranker to another"
            )
    partitioned = needs.work == "training" and "llm" in needs.models(config) and llm.placement != "replicated"
    if partitioned and workers % llm.hpz_group:
        raise ValueError(
            f"llm.hpz_group {llm.hpz_group} does not divide workers.num_workers {workers}: set it to the workers of a "
            "node, or to 1"
        )


def doubts(needs: Needs, config: Config) -> Iterator[str]:
    """What works, and is hardly meant."""
    workers, shards = config.workers.num_workers, config.data.num_shards
    least = least_shards(0, workers)
    if needs.work in ("tasks", "pool") and needs.blocks(config) == shards and shards < least:
        yield (
            f"data.num_shards {shards} is less than twice workers.num_workers {workers}: workers of `nightly` and "
            f"`evaluate` will wait for others; set data.num_shards to {least} or more"
        )


def probe(storage: Storage) -> None:
    """Raises ValueError unless the verb can write there, and a store honours put-if-absent."""
    if not isinstance(storage, LocalStorage):
        storage.probe_create()
        return
    try:
        storage.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{storage.uri}: cannot write there: {error.strerror}") from None
    if not os.access(storage.root, os.W_OK | os.X_OK):
        raise ValueError(f"{storage.uri}: cannot write there: permission denied")


def _on_ray(needs: Needs, config: Config, console: Console) -> AbstractContextManager[None]:
    from jobs.runtime import resources
    from jobs.runtime.cluster import on_a_cluster, start_ray

    start_ray(config)
    requested, nodes = needs.start(config), resources.alive()
    if not on_a_cluster():  # Ray has as many CPUs here as it is asked for
        there = sum(node["Resources"].get("GPU", 0) for node in nodes)
        needed = requested.count * requested.gpus
        if there < needed:
            raise ValueError(
                f"workers.gpus_per_worker asks for {needed:g} GPUs, and this machine has {there:g}; set it to 0, or "
                "submit the job to a cluster"
            )
        check_models(needs, config, requested, nodes, lambda node, folders: look(folders))
        return nullcontext()
    refuse_local_folders(needs, config, nodes)
    resources.await_resources(requested, console, config.workers.resources_timeout_s)
    check_models(needs, config, requested, resources.alive(), resources.look_at)
    return resources.watching(resources.Watch(needs.least(config), console, config.workers.resources_timeout_s))


def refuse_local_folders(needs: Needs, config: Config, nodes: list[Any]) -> None:
    """Raises ValueError where several machines would each write into a folder of their own."""
    machines = {node["NodeManagerAddress"] for node in nodes}
    for storage in (config.workspace.storage, *needs.writes(config)):
        if len(machines) > 1 and isinstance(storage, LocalStorage):
            raise ValueError(
                f"{storage.uri} is a folder, and the cluster has {len(machines)} machines, each with a disk of its "
                "own; set root (or nightly.output) to an s3:// prefix"
            )


def check_models(
    needs: Needs, config: Config, requested: "Resources", nodes: list[Any], look_at: Callable[[Any, list[str]], Host]
) -> None:
    """Raises ValueError where a node with room for a worker lacks a model's folder, or the memory for the LLM."""
    models = needs.models(config)
    encoder = config.recformer.encoder if config.recformer is not None else None
    names = {"llm": config.llm.name, "text": config.text.model, "recformer": encoder or ""}
    folders = [names[model] for model in models if Path(names[model]).is_dir()]
    for node in nodes if models else ():
        workers = min(requested.room(node), requested.count)
        if not workers:
            continue
        host, name = look_at(node, folders), node["NodeManagerHostname"]
        if host.missing:
            raise ValueError(
                f"{', '.join(host.missing)} is a folder of this machine, and {name} has none; put the model there, or "
                "name an s3:// prefix in its place"
            )
        gpus = requested.gpus if needs.cuts_llm else min(requested.gpus, 1)  # that hold the LLM
        of_gpu = None if host.gpu_bytes is None else int(host.gpu_bytes * gpus)
        memory = of_gpu if requested.gpus else int(node["Resources"].get("memory", 0)) // workers
        if "llm" in models and memory is not None:
            _refuse_large_llm(_llm_bytes(needs, config, requested.count, memory), config, memory, workers, name)


def _refuse_large_llm(llm_bytes: int, config: Config, memory: int, workers: int, host: str) -> None:
    if llm_bytes > memory:
        raise ValueError(
            f"llm.name {config.llm.name!r} needs {llm_bytes >> 20:,} MB in each worker, and {host} has "
            f"{memory >> 20:,} MB for each of {workers}; take a smaller LLM, larger machines, fewer workers on "
            "each (workers.cpus_per_worker), in training llm.placement: sharded or offloaded, in nightly runs "
            "more GPUs for each (workers.gpus_per_worker)"
        )


def _llm_bytes(needs: Needs, config: Config, workers: int, memory: int) -> int:
    """Memory that the LLM's weights take in a worker, at least; roughly, where it is far below `memory`."""
    from allmrec.llm.loading import llm_folder

    stored = sum(path.stat().st_size for path in llm_folder(config.llm, weights=False).rglob("*.safetensors"))
    if stored and _LARGEST_GROWTH * stored <= memory:  # without transformers, which takes seconds to import
        return stored
    from allmrec.llm.loading import Placement
    from allmrec.projection.placement import llm_outline, worker_bytes

    llm = config.llm
    if llm.dtype == "auto":  # by the workers' devices: the driver may have others
        llm = llm.model_copy(update={"dtype": "bfloat16" if config.workers.gpus_per_worker else "float32"})
    outline = llm_outline(llm)
    if needs.work != "training":
        return outline.weight_bytes
    placements = get_args(Placement) if llm.placement == "auto" else (llm.placement,)
    return min(worker_bytes(outline, placement, workers, 0) for placement in placements)
