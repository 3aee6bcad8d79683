"""Preparations of small parts, for tests that end them."""

import time

# prepare_data of parts of some 3,500 bytes: python SMALL, and what the command is given.
SMALL = """
import runpy
if __name__ == "__main__":
    from colajax.data import parts
    parts.SMALLEST = 3500
    runpy.run_path("tools/prepare_data.py", run_name="__main__")
"""


def forever(job, part):
    """What workers, which import this by its name, never come to an end with."""
    time.sleep(3600)
