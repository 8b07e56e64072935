"""A small API server, enough for `kubectl apply`: knows some kinds, validates strictly, keeps what is created."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.cluster.schemas import validate

# Group and version → its kinds and their plurals.
KINDS = {
    "v1": {"ConfigMap": "configmaps", "Service": "services", "ServiceAccount": "serviceaccounts"}
    | {"PersistentVolumeClaim": "persistentvolumeclaims"},
    "apps/v1": {"Deployment": "deployments"},
    "batch/v1": {"CronJob": "cronjobs"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "ray.io/v1": {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"},
}


class ApiServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}  # by path
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def kinds(self) -> list[str]:
        return sorted(found["kind"] for found in self.objects.values())


@contextmanager
def api_server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        discovered = _discovery(path)
        if discovered is not None:
            self._send(200, discovered)
        elif path in self.server.objects:
            self._send(200, self.server.objects[path])
        else:
            self._send(404, _status(404, "NotFound", f"{path} is not there"))

    def do_POST(self) -> None:
        manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            validate(manifest)
        except Exception as error:
            self._send(422, _status(422, "Invalid", str(error)))
            return
        path = f"{self.path.partition('?')[0]}/{manifest['metadata']['name']}"
        self.server.objects[path] = manifest
        self._send(201, manifest)

    def _send(self, code: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def _discovery(path: str) -> dict[str, Any] | None:
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for name in KINDS:
            if name != "v1":
                version = {"groupVersion": name, "version": name.rpartition("/")[2]}
                groups.append({"name": name.partition("/")[0], "versions": [version], "preferredVersion": version})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    name = path.removeprefix("/apis/").removeprefix("/api/")
    if name not in KINDS:
        return None
    resources = [
        {"name": plural, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "create", "patch"]}
        for kind, plural in KINDS[name].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    kind = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**kind, "code": code, "reason": reason, "message": message}
