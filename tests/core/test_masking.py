"""What is printed holds no secret, wherever the secret was."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core.masking import masked

SECRET = "marked/Secret+42="


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "DB_PASSWORD", "OPENAI_API_KEY", "wandb_api_key"],
)
def test_values_of_the_environment_are_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert masked(f"of {SECRET}, and {quote(SECRET, safe='')}") == "of ***, and ***"
    assert json.loads(masked(json.dumps({"env_vars": {name: SECRET}}))) == {"env_vars": {name: "***"}}


def test_places_and_short_words_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    text = "no /var/run/secrets/token in a test of s3://bucket/prefix@1, file:///a@b or http://host:8080/a?b=c"
    assert masked(text) == text


@given(
    user=st.from_regex(r"[a-z]{1,5}", fullmatch=True),
    password=st.from_regex(r"[A-Za-z0-9@:%+.-]{9,20}", fullmatch=True),
)
def test_users_and_passwords_of_urls_are_masked(user: str, password: str) -> None:
    shown = masked(f'Could not connect to the endpoint URL: "http://{user}:{password}@store:9000/bucket?a=1"')
    assert shown == 'Could not connect to the endpoint URL: "http://***@store:9000/bucket?a=1"'


def test_signatures_of_urls_are_masked() -> None:
    url = "https://host/key?X-Amz-Credential=AK/2026&X-Amz-Signature=0123abcd&versionId=7"
    assert masked(url) == "https://host/key?X-Amz-Credential=***&X-Amz-Signature=***&versionId=7"
