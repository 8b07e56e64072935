"""Prints the dependencies of pyproject.toml and of the named extras, so that an image can install them before the code.

python cluster/requirements.py delta faiss
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [name for extra in sys.argv[1:] for name in project["optional-dependencies"][extra]]
print(*project["dependencies"], *extras, sep="\n")
