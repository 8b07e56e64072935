"""Ray Train for the jobs: `fit` runs a training loop on its workers until it is done.

A loop is a function `loop(config: dict) -> Stats` that runs on every worker inside a torch process group (gloo on
CPUs, nccl on GPUs). It begins with `resume()`, calls `report(...)` at the same points on every worker, and what
rank 0 returns comes back from `fit`. Knows Ray Train (V2); what is trained is the loop's business.

A worker that dies is replaced and the loop resumes from its last checkpoint, `workers.max_failures` times; where the
cluster has lost nodes, with fewer workers. A driver that dies may be started again: checkpoints are stored under the
step's identity, so the same step resumes and a changed one starts from the beginning.
"""

import json
import tempfile
from collections.abc import Callable
from queue import Empty
from threading import Thread
from typing import Any

import ray
import torch
from pyarrow.fs import FileSelector
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from allmrec.core.errors import WorkersLost
from allmrec.core.storage import Storage
from allmrec.core.tracking import TrackedRun, tracking
from allmrec.core.training_state import load_state, save_state
from jobs.config import WorkersConfig
from jobs.runtime.cluster import on_a_cluster, start_ray
from jobs.runtime.prometheus import TrainingMetrics
from jobs.runtime.resources import guarded
from jobs.runtime.step import Context, Stats

_DEATHS = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)

Loop = Callable[[dict[str, Any]], Stats]


def fit(context: Context, verb: str, loop: Loop, loop_config: dict[str, Any], total: int) -> Stats:
    """Run `loop(loop_config)` on the configured workers.

    Args:
        verb: names the progress bar and the folder of checkpoints, `<workspace>/checkpoints/<verb>`.
        loop_config: travels to the workers; sections, storages and plain values.
        total: units of work (epochs or steps); `report(done=...)` counts them.

    Returns:
        what `loop` returned on rank 0. The checkpoints are gone by then.

    Raises:
        ValueError: the loop's own, as it was raised.
        WorkersLost: workers died more often than `workers.max_failures`.
        ray.train.TrainingFailedError: any other error of the loop, which recurred as often.
    """
    start_ray(context.config)
    workers = context.config.workers
    least = min(workers.min_workers or 1, workers.num_workers)  # where nodes are lost; more come back with the nodes
    checkpoints = context.workspace.checkpoints.at(verb)
    _prune_checkpoints(checkpoints, context.fingerprint)
    filesystem, path = checkpoints.arrow()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # any other may be lost
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = _Trainer(
        _with_threads(loop, workers),
        train_loop_config=loop_config,
        torch_config=TorchConfig(backend="nccl" if workers.gpus_per_worker else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=(least, workers.num_workers) if on_a_cluster() else workers.num_workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker={"CPU": workers.cpus_per_worker}
            | ({"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {}),
        ),
        run_config=train.RunConfig(
            name=context.fingerprint,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            callbacks=[_ToDriver(queue)],
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    name, settings = f"{context.config.name} {verb}", context.config.model_dump(mode="json")
    record = tracking(context.config.mlflow, name, context.fingerprint, settings)
    with context.console.progress(verb, total) as bar, record as tracked:
        reader = Thread(target=_show, args=(queue, bar, TrainingMetrics(verb), tracked), daemon=True)
        reader.start()
        try:
            (result,) = guarded(call() for call in (trainer.fit,))
        except train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}).values()
            for failure in failures:
                cause = getattr(failure, "_base_exc", failure)
                if isinstance(cause, ValueError):  # the user's to mend
                    raise cause from error
            if any(isinstance(failure, _DEATHS) for failure in failures):  # others say that they lost the connection
                lost = f"{verb}: workers died more often than workers.max_failures = {workers.max_failures}"
                raise WorkersLost(f"{lost}; run again to resume from the last checkpoint") from error
            raise
        finally:
            queue.put(None)
            reader.join(timeout=10)
            queue.shutdown()
        tracked.metrics(result.return_value, total, "result/")
    _prune_checkpoints(checkpoints, None)
    return result.return_value


def report(done: int, state: Any = None, **numbers: float) -> None:
    """On every worker alike: show `numbers` after `done` units; rank 0's `state` is kept as a checkpoint.

    `state` is what `save_state` takes. Other ranks' states are ignored, so they may pass None.
    """
    metrics = {"done": done, **numbers}
    if train.get_context().get_world_rank() != 0 or state is None:
        train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_state(folder, state)
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def resume() -> Any:
    """On a worker: the state of the last checkpoint, None at the very beginning."""
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return load_state(folder)


def run_epochs(training: Any) -> None:
    """On every worker: a training's rounds from its last checkpoint on, with a checkpoint after each of its epochs."""
    state = resume()
    if state is not None:
        training.load_state_dict(state)
    for numbers in training.rounds():
        report(training.epoch, training.state_dict(), **numbers)


def run_rounds(training: Any) -> list[dict[str, float]]:
    """On every worker: what each of a training's rounds said, with a checkpoint after each; done is in per cent."""
    rounds = []
    for numbers in training.rounds():
        rounds.append(numbers)
        report(100 * training.step // training.total_steps, training.state_dict(), step=training.step, **numbers)
    return rounds


def device() -> torch.device:
    """On a worker: the GPU that Ray gave it, or the CPU."""
    return get_device()


class _Trainer(TorchTrainer):
    """Without the processes that Ray starts for what is not there.

    Datasets: the loops read their own. And on a Ray that ends with its driver, what cleans up after a training, which
    would ask the dashboard for ten seconds.
    """

    def _create_default_callbacks(self) -> list[Any]:
        needless = (DatasetsCallback,) if on_a_cluster() else (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, needless)]


class _ToDriver(train.UserCallback):
    """Ray calls it in its controller; the numbers are passed on to the driver, where the console is."""

    def __init__(self, queue: Queue):
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.queue.put(metrics[0])


def _show(queue: Queue, bar: Any, exported: TrainingMetrics, tracked: TrackedRun) -> None:
    """Move the bar until None comes. After a worker's death the loop repeats units; the bar does not go back."""
    while True:
        try:
            metrics = queue.get(timeout=1)
        except Empty:
            continue
        if metrics is None:
            return
        done = metrics.pop("done")
        bar.advance(max(done - bar.done, 0), **metrics)
        exported.reported(bar.done / max(bar.total, 1), metrics)
        tracked.metrics(metrics, done)


def _with_threads(loop: Loop, workers: WorkersConfig) -> Loop:
    """The loop on as many threads as the worker has CPUs; more of them would only fight."""

    def prepared(config: dict[str, Any]) -> Stats:
        torch.set_num_threads(max(1, int(workers.cpus_per_worker)))
        return loop(config)

    return prepared


def _prune_checkpoints(checkpoints: Storage, identity: str | None) -> None:
    """Remove the checkpoints of other identities, and a snapshot that a dying driver left half-written."""
    filesystem, root = checkpoints.arrow()
    for folder in filesystem.get_file_info(FileSelector(root, allow_not_found=True)):
        if folder.base_name != identity or not _readable(checkpoints, folder.base_name):
            filesystem.delete_dir(folder.path)


def _readable(checkpoints: Storage, identity: str) -> bool:
    try:
        json.loads(checkpoints.read(f"{identity}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"))
    except (FileNotFoundError, ValueError):
        return False
    return True
