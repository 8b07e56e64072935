"""The nightly run from Airflow, whose workers have allmrec installed and reach the Ray head and the bucket."""

import subprocess
from datetime import UTC, datetime, timedelta

from airflow.exceptions import AirflowFailException
from airflow.sdk import dag, task

COMMAND = ["allmrec", "submit", "--address", "http://allmrec-head-svc:8265", "--config", "/config/config.yaml"]
FINAL = (2, 3, 4)  # the user's to mend, a quality gate, another process makes the date: no other attempt mends these


@dag(schedule="30 1 * * *", start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=1)
def allmrec_daily() -> None:
    @task(retries=3, retry_delay=timedelta(minutes=5), execution_timeout=timedelta(hours=18))
    def daily(data_interval_end: datetime | None = None) -> None:
        assert data_interval_end is not None, "Airflow fills it in: when the run was due"
        code = subprocess.run([*COMMAND, "--date", str(data_interval_end.date())]).returncode
        if code in FINAL:
            raise AirflowFailException(f"allmrec ended with exit code {code}")
        if code:
            raise RuntimeError(f"allmrec ended with exit code {code}")

    daily()


allmrec_daily()
