"""Connecting to Ray, or starting it on this machine. What runs there is `ray_data`'s and `ray_train`'s business."""

import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray._private import parameter, services
from ray._private import worker as ray_worker

from allmrec.core.masking import masked
from allmrec.core.storage.s3 import store_environment
from jobs.config import Config

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
    if on_a_cluster():
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # the job's own runtime_env is kept, with `store` over it
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
    with _without_ray_log_lines(), _for_one_machine():
        ray.init("local", num_cpus=max(os.cpu_count() or 1, needed), include_dashboard=False, **options)


@contextmanager
def _for_one_machine() -> Iterator[None]:
    """What `init` has no options for. A Ray that starts has its agent on any free port, for with one port for all a
    second Ray waits 4 s; and not the processes that ask for more nodes, that pass on what workers print, and that
    would serve a dashboard: without one it has nothing to serve, and `init` waits for it.
    """
    params, start_api_server = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(params, dashboard_agent_listen_port=0, no_monitor=True, include_log_monitor=False)
    services.start_api_server = lambda *_, **__: ("", None)  # no address, no process
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, start_api_server


def _notice_on_stderr(notice: dict[str, Any], ignore_prefix: bool) -> None:
    """Show what a node reports, such as a killed worker. Ray prints it on standard output, which is for our events."""
    _print_notice({**notice, "is_err": True}, ignore_prefix)


def on_a_cluster() -> bool:
    """Whether Ray runs there already, perhaps on several nodes."""
    return bool(os.environ.get("RAY_ADDRESS"))


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
                    os.write(shown, masked(line.decode(errors="surrogateescape")).encode(errors="surrogateescape"))
            os.close(shown)
