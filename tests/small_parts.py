"""What workers, which import this by its name, do with a part and never come to an end with."""

import time


def forever(job, part):
    time.sleep(3600)
