"""A Spark session for a module."""

import os
import shutil
import sys
from collections.abc import Iterator
from subprocess import Popen
from typing import Any

import pytest


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory, s3_environment: None) -> Iterator[Any]:
    """One core; the JVM, which keeps the environment in which it started, ends with the module."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'allmrec[spark]'")
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        pytest.skip("Spark needs Java: apt-get install default-jre-headless")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("spark"))
        patch.delenv("SPARK_HOME", raising=False)
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        # Without what PySpark runs in the child first: a copy of a process that has threads may hang there.
        patch.setattr("pyspark.java_gateway.Popen", lambda command, preexec_fn, **more: Popen(command, **more))
        settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.log.level": "OFF"}
        session = sql.SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
        yield session
        session.stop()
    sql.SparkSession._instantiatedSession = None
    context = sys.modules["pyspark"].SparkContext
    context._gateway.shutdown()
    context._gateway.proc.communicate(timeout=60)  # it ends when its input does
    context._gateway = context._jvm = None
