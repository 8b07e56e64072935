"""Ray programs: one verb a file, and the console. `runtime` has what they share."""

import sys

from allmrec.core.own_packages import refuse_hidden_packages

if sys.argv[:1] == ["-m"]:  # `python -m jobs.VERB`, before the verb's own imports
    refuse_hidden_packages()
