"""Text without its secrets, for everything that is printed: values of the environment, and what URLs carry.

Errors quote what they failed on, and a library's quote whole environments; so nothing is printed but through `masked`.
"""

import json
import os
import re
from urllib.parse import quote

_MASK = "***"
_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|SIGNATURE|_PAT$", re.IGNORECASE)
_PLACE = re.compile(r"_(FILE|PATH|DIR|URL|URI)$")  # where a secret is, not the secret; URLs are masked as such
_SHORTEST = 8  # a shorter value is a word of the text more often than a secret
_USER_OF_URL = re.compile(r"(?<=://)[^/\s\"'<>]+@")
_SIGNED = re.compile(
    r"([?&](?:X-Amz-[\w-]+|AWSAccessKeyId|Signature|sig|token|password|secret)=)[^&\s\"'<>]+", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text with `***` for each secret of the environment, and for users, passwords and signatures of URLs."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        for spelling in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1]):
            text = text.replace(spelling, _MASK)
    return _SIGNED.sub(rf"\1{_MASK}", _USER_OF_URL.sub(f"{_MASK}@", text))


def _secrets() -> set[str]:
    return {value for name, value in os.environ.items() if _is_secret(name) and len(value) >= _SHORTEST}


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _PLACE.search(name)
