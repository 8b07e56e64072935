"""Ray for the jobs: starting it, and `fit`, which runs a training loop on its workers until it is done.

A loop is a function `loop(config: dict) -> Stats` that runs on every worker inside a torch process group (gloo on
CPUs, nccl on GPUs). It begins with `resume()`, calls `report(...)` at the same points on every worker, and what
rank 0 returns comes back from `fit`. Knows Ray Train (V2); what is trained is the loop's business.

A worker that dies is replaced and the loop resumes from its last checkpoint, `workers.max_failures` times. A
driver that dies may be started again: checkpoints are stored under the step's identity, so the same step resumes and
a changed one starts from the beginning.
"""

import json
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from threading import Thread
from typing import Any

import ray
import torch
from pyarrow.fs import FileSelector
from ray import train
from ray._private import worker as ray_worker
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.util.queue import Queue

from allmrec.core.storage import Storage
from allmrec.core.storage.s3 import store_environment
from allmrec.core.training_state import load_state, save_state
from jobs.config import Config, WorkersConfig
from jobs.runtime.step import Context, Stats

Loop = Callable[[dict[str, Any]], Stats]

_print_notice = ray_worker.print_to_stdstream
_RAY_LOG_LINE = re.compile(rb"\[[^\]]* [A-Z] \d+ \d+\] (\([^)]*\) )?[\w/]+\.cc:\d+: ")

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the config mean the same on a worker
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how long a finished loop waits to be noticed
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ prints advice on Ray's internals to the driver's standard error
    # A shuffle of Ray Data has workers of its own kind; one per CPU of either kind stays, else they oust each other.
    "RAY_num_workers_soft_limit": str(4 * (os.cpu_count() or 1)),
}


def start_ray(config: Config) -> None:
    """Connect to the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start Ray on this machine.

    Call it as often as you like: the first call counts.
    """
    if ray.is_initialized():
        return
    store = store_environment(config.storage)
    for name, value in (_ENVIRONMENT | store).items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    ray_worker.print_to_stdstream = _notice_on_stderr
    if os.environ.get("RAY_ADDRESS"):
        with _without_ray_log_lines():
            ray.init(runtime_env={"env_vars": store}, **options)
        return
    # This machine is not preempted, and the watcher for that is one more process to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray's CPUs are slots: a machine with fewer cores than workers runs them all, slower.
    needed = math.ceil(config.workers.num_workers * config.workers.cpus_per_worker)
    if config.workers.object_store_mb is not None:
        options["object_store_memory"] = config.workers.object_store_mb * 2**20
    # One of its own, even where another process has started Ray.
    with _without_ray_log_lines():
        ray.init("local", num_cpus=max(os.cpu_count() or 1, needed), include_dashboard=False, **options)


def _notice_on_stderr(notice: dict[str, Any], ignore_prefix: bool) -> None:
    """Show what a node reports, such as a killed worker. Ray prints it on standard output, which is for our events."""
    _print_notice({**notice, "is_err": True}, ignore_prefix)


@contextmanager
def _without_ray_log_lines() -> Iterator[None]:
    """While Ray starts: what comes on standard error is shown afterwards, without the lines of Ray's C++.

    They come before its level of logging applies, and one says that it was set.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            held.seek(0)
            for line in held:
                if not _RAY_LOG_LINE.match(line):
                    os.write(shown, line)
            os.close(shown)


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
        ray.train.TrainingFailedError: workers failed more often than `workers.max_failures`.
    """
    start_ray(context.config)
    workers = context.config.workers
    checkpoints = context.workspace.checkpoints.at(verb)
    _prune_checkpoints(checkpoints, context.fingerprint)
    filesystem, path = checkpoints.arrow()
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _with_threads(loop, workers),
        train_loop_config=loop_config,
        torch_config=TorchConfig(backend="nccl" if workers.gpus_per_worker else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=workers.num_workers,
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
    with context.console.progress(verb, total) as bar:
        reader = Thread(target=_show, args=(queue, bar), daemon=True)
        reader.start()
        try:
            result = trainer.fit()
        except train.TrainingFailedError as error:
            for failure in getattr(error, "worker_failures", {}).values():
                cause = getattr(failure, "_base_exc", failure)
                if isinstance(cause, ValueError):  # the user's to mend
                    raise cause from error
            raise
        finally:
            queue.put(None)
            reader.join(timeout=10)
            queue.shutdown()
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


def device() -> torch.device:
    """On a worker: the GPU that Ray gave it, or the CPU."""
    return get_device()


class _ToDriver(train.UserCallback):
    """Ray calls it in its controller; the numbers are passed on to the driver, where the console is."""

    def __init__(self, queue: Queue):
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.queue.put(metrics[0])


def _show(queue: Queue, bar: Any) -> None:
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
