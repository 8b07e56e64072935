"""What `kubectl apply -k cluster/overlays/…` applies: valid to the last field, and as the package expects it."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from kubernetes_validate import ValidationError as CoreValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from typer.testing import CliRunner

from allmrec.core.errors import QualityGateFailed, WorkersLost, exit_code
from allmrec.core.version import __version__
from allmrec.publishing.lease import RunHeld
from jobs.cli import app
from jobs.config import load_config
from jobs.pipeline import TRAINING
from tests.cluster.api_server import api_server
from tests.cluster.rendered import CLUSTER, OVERLAYS, by_name, kustomize, needs_kubectl, pods, ray_spec, rendered
from tests.cluster.schemas import validate

pytestmark = needs_kubectl
CONFIGS = ["base/config.yaml", "components/gpu/config.yaml"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_applies_an_overlay_and_every_object_is_valid(overlay: str, tmp_path: Path) -> None:
    with api_server() as server:
        command = [
            "kubectl",
            "--server",
            server.url,
            "apply",
            "--validate=false",
            "-k",
            f"{CLUSTER}/overlays/{overlay}",
        ]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert server.kinds == sorted(manifest["kind"] for manifest in rendered(overlay).values())
        assert all("/namespaces/allmrec/" in path for path in server.objects)


def test_a_field_that_is_not_in_a_schema_is_refused() -> None:
    found = rendered("gpu")
    cluster, cron = (by_name(yaml.safe_dump(found[name])) for name in ("RayCluster allmrec", "CronJob allmrec-daily"))
    ray_spec(cluster)["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "typo"
    with pytest.raises(ValidationError, match="imagee"):
        validate(cluster["RayCluster allmrec"])
    cron["CronJob allmrec-daily"]["spec"]["retries"] = 3
    with pytest.raises(CoreValidationError, match="retries"):
        validate(cron["CronJob allmrec-daily"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_versions_are_those_of_the_package(overlay: str) -> None:
    pinned = dict(line.split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line)
    assert ray_spec(rendered(overlay))["rayVersion"] == pinned["ray"]
    images = {container["image"] for pod in pods([*rendered(overlay).values()]) for container in pod["containers"]}
    assert images == {f"REGISTRY/allmrec:{__version__}"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_unprivileged_sized_and_has_the_cloud_identity(overlay: str) -> None:
    found = pods([*rendered(overlay).values()])
    assert found
    for pod in found:
        assert pod["serviceAccountName"] == "allmrec" and pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["requests"].keys()
            mounts, volumes = (
                {entry["name"] for entry in part} for part in (container["volumeMounts"], pod["volumes"])
            )
            assert mounts <= volumes


@pytest.mark.parametrize(("overlay", "path"), zip(("cpu-trial", "gpu"), CONFIGS, strict=True))
def test_the_autoscaler_can_start_what_the_config_needs(overlay: str, path: str) -> None:
    """By the pods' resources as Ray's autoscaler reads them."""
    scaled = _derive_autoscaling_config_from_ray_cr(rendered(overlay)["RayCluster allmrec"])
    nodes = scaled["available_node_types"]
    assert nodes.pop(scaled["head_node_type"])["resources"]["CPU"] == 0, "tasks do not run beside the drivers"
    workers = load_config(CLUSTER / path).workers
    needed = {"CPU": workers.cpus_per_worker} | ({"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {})
    room = [
        node["max_workers"] * min(int(node["resources"].get(name, 0) // count) for name, count in needed.items())
        for node in nodes.values()
    ]
    assert max(room) >= workers.num_workers, "a training's workers are of one kind"
    assert all(node["min_workers"] == 0 for node in nodes.values()), "an idle cluster is its head"


def test_gpu_pods_go_to_gpu_nodes_and_the_autoscaler_is_v2() -> None:
    spec = ray_spec(rendered("gpu-train"))
    assert spec == ray_spec(rendered("gpu")) == ray_spec(rendered("gpu-raycronjob")), "one shape for all"
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    gpu = next(group for group in spec["workerGroupSpecs"] if group["groupName"] == "gpu")["template"]["spec"]
    assert gpu["nodeSelector"] and gpu["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_shared_cache_takes_the_place_of_every_pods_own(tmp_path: Path) -> None:
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    overlay = tmp_path / "cluster/overlays/gpu"
    text = (overlay / "kustomization.yaml").read_text()
    gpu = "  - ../../components/gpu\n"
    (overlay / "kustomization.yaml").write_text(text.replace(gpu, f"{gpu}  - ../../components/shared-models\n"))
    found = by_name(kustomize(overlay))
    for manifest in found.values():
        validate(manifest)
    models = [
        volume for pod in pods(found["RayCluster allmrec"]) for volume in pod["volumes"] if volume["name"] == "models"
    ]
    assert models == [{"name": "models", "persistentVolumeClaim": {"claimName": "allmrec-models"}}] * 3


def test_only_what_another_attempt_may_mend_is_tried_again() -> None:
    job = rendered("gpu")["CronJob allmrec-daily"]["spec"]["jobTemplate"]["spec"]
    rule = job["podFailurePolicy"]["rules"][0]
    final = [exit_code(error("")) for error in (ValueError, QualityGateFailed, RunHeld)]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == final
    assert exit_code(WorkersLost("")) not in final
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["backoffLimit"] and job["activeDeadlineSeconds"]


def test_the_scheduler_has_the_clusters_token() -> None:
    cluster = rendered("gpu")["RayCluster allmrec"]
    (pod,) = pods(rendered("gpu")["CronJob allmrec-daily"])
    env = {variable["name"]: variable for variable in pod["containers"][0]["env"]}
    assert cluster["spec"]["authOptions"] == {"mode": env["RAY_AUTH_MODE"]["value"]}
    secret = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": cluster["metadata"]["name"], "key": "auth_token"}, "as KubeRay names it"


def test_training_names_every_step_in_order() -> None:
    entrypoint = rendered("gpu-train")["RayJob allmrec-train"]["spec"]["entrypoint"]
    script = shlex.split(entrypoint)[2]
    verbs = shlex.split(script.partition(" in ")[2].partition(";")[0])
    assert [verb.split()[0].replace("-", "_") for verb in verbs] == [*TRAINING, "evaluate"]


@pytest.mark.parametrize("path", CONFIGS)
def test_the_configs_are_valid_and_share_no_disk(path: str) -> None:
    config = load_config(CLUSTER / path)
    assert config.root.startswith("s3://") and config.nightly.timeout_s
    assert rendered("gpu")["CronJob allmrec-daily"]["spec"]["timeZone"] == "Etc/" + config.nightly.timezone


def commands(manifest: Any) -> list[list[str]]:
    """What containers and entrypoints call."""
    if isinstance(manifest, list):
        return [call for part in manifest for call in commands(part)]
    if not isinstance(manifest, dict):
        return []
    own = [manifest["command"]] if isinstance(manifest.get("command"), list) else []
    return own + [call for part in manifest.values() for call in commands(part)]


def test_the_commands_parse() -> None:
    found = commands([*rendered("gpu").values()])
    assert len(found) == 2
    for program, *arguments in found:
        assert program == "allmrec"
        result = CliRunner().invoke(app, [*arguments, "--help"])
        assert result.exit_code == 0
        options = [argument for argument in arguments if argument.startswith("--")]
        assert options and all(option in result.output for option in options)
