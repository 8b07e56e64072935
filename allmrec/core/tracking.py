"""Trainings as runs of MLflow: the config as params, losses and speeds as metrics, the evaluation and its report.

Off unless the config has a section `mlflow`; needs the extra `mlflow`. A training is one run, found by the training's
identity: one that resumes continues its run, and an evaluation of its models adds to it. A tracking server that does
not answer costs a warning, never a training.
"""

import importlib.util
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from allmrec.core.masking import masked
from allmrec.core.settings import Section

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

IDENTITY = "allmrec.identity"  # the tag by which a training's run is found
_PLACES = ("storage", "mlflow")  # sections that say where stores are, and perhaps how to get in
_LONGEST = 500  # characters of a param that every server takes
_BATCH = 100  # params of a request


class MLflowConfig(Section):
    """Where trainings are recorded; credentials come from MLflow's own variables of the environment."""

    tracking_uri: str | None = None  # of the server; null: MLFLOW_TRACKING_URI
    experiment: str = Field("allmrec", min_length=1)  # is made if it does not exist


class TrackedRun:
    """A run of MLflow; without a client, or once that has failed, all methods do nothing."""

    def __init__(self, client: "MlflowClient | None" = None, run_id: str = ""):
        self.client, self.run_id = client, run_id

    def params(self, settings: Mapping[str, Any]) -> None:
        """Record a config, see `flat_params`."""
        from mlflow.entities import Param

        found = [Param(name, value) for name, value in flat_params(settings).items()]
        for start in range(0, len(found), _BATCH):
            self._send("log_batch", params=found[start : start + _BATCH])

    def metrics(self, numbers: Mapping[str, Any], step: int = 0, prefix: str = "") -> None:
        """Record those of the numbers that are finite."""
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        found = {mlflow_name(prefix + name): value for name, value in numbers.items() if is_finite(value)}
        self._send("log_batch", metrics=[Metric(name, float(value), now, step) for name, value in found.items()])

    def text(self, name: str, text: str) -> None:
        """Keep a text as the artifact `name`."""
        self._send("log_text", text, name)

    def status(self, status: str) -> None:
        """RUNNING, FINISHED or FAILED."""
        self._send("update_run" if status == "RUNNING" else "set_terminated", status)

    def _send(self, method: str, *arguments: Any, **named: Any) -> None:
        if self.client is None:
            return
        try:
            getattr(self.client, method)(self.run_id, *arguments, **named)
        except Exception as error:  # of MLflow, requests or a plugin
            self.client = None
            log.warning("MLflow: the rest of run %s is not recorded: %s", self.run_id, error)


def check(config: MLflowConfig | None) -> None:
    """Raises ValueError where trainings are to be recorded and MLflow is not installed."""
    if config is not None and importlib.util.find_spec("mlflow") is None:
        raise ValueError("mlflow needs MLflow's client: pip install 'allmrec[mlflow]', or leave the section out")


def tracked_run(config: MLflowConfig | None, name: str, identity: str, settings: Mapping[str, Any]) -> TrackedRun:
    """The run of a training; a new one where it has none.

    Args:
        name: of a new run.
        identity: fingerprint of the training.
        settings: the whole config as plain data, the params of a new run.
    """
    if config is None:
        return TrackedRun()
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=config.tracking_uri)
        found = client.get_experiment_by_name(config.experiment)
        experiment = found.experiment_id if found else client.create_experiment(config.experiment)
        if known := client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'", max_results=1):
            return TrackedRun(client, known[0].info.run_id)
        run = TrackedRun(client, client.create_run(experiment, run_name=name, tags={IDENTITY: identity}).info.run_id)
    except Exception as error:
        log.warning("MLflow: %s is not recorded: %s", name, error)
        return TrackedRun()
    run.params(settings)
    return run


@contextmanager
def tracking(
    config: MLflowConfig | None, name: str, identity: str, settings: Mapping[str, Any]
) -> Iterator[TrackedRun]:
    """`tracked_run` around a training, which ends as FINISHED, or with an error as FAILED."""
    run = tracked_run(config, name, identity, settings)
    run.status("RUNNING")
    try:
        yield run
    except BaseException:
        run.status("FAILED")
        raise
    run.status("FINISHED")


def flat_params(settings: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """A config as `section.key` → text; without nulls, secrets, and the sections that only say where things are."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if value is None or (not path and key in _PLACES):
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            flat |= flat_params(value, name)
        else:
            flat[mlflow_name(name)] = masked(str(value))[:_LONGEST]
    return flat


def mlflow_name(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name.replace("@", "_at_"))


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
