"""The catalogue of faults: bad input of every kind, tried on the commands as a user types them.

`python -m tests.faults` writes docs/faults.md.
"""

from tests.faults import commands, data, mgsr, models
from tests.faults.workshop import CASES, Case, Outcome, Workshop

__all__ = ["CASES", "Case", "Outcome", "Workshop", "commands", "data", "mgsr", "models"]
