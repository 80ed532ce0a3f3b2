"""The folders of a training job: the run's output, and one of logs for each attempt."""

import glob
import json
import os

from slurm.jobs.words import make_folder, say


class Folders:
    """The folders of a job, made when they are not there.

    Attributes:
        output_dir: of the run.
        logs: slurm/logs/NAME.
    """

    def __init__(self, run, job):
        self.output_dir = run["output_dir"]
        self.data, self.model = run["data"], run["model"]
        self.logs = os.path.join("slurm", "logs", job.name)
        make_folder(self.output_dir)
        make_folder(self.logs)

    def new_attempt(self, job):
        """The next attempt's log folder, which `latest` then leads to."""
        number = 0
        while os.path.exists(self._attempt(job, number)):
            number += 1
        folder = self._attempt(job, number)
        os.mkdir(folder)
        try:
            self._lead_to(folder)
        except OSError as error:  # not every file system has links, and nothing depends on this one
            say("{}/latest does not lead to {}: {}".format(self.logs, folder, error))
        return folder

    def _lead_to(self, folder):
        name = os.path.basename(folder)
        temporary = os.path.join(self.logs, ".latest-" + name)
        os.symlink(name, temporary)
        os.replace(temporary, os.path.join(self.logs, "latest"))

    def _attempt(self, job, number):
        return os.path.join(self.logs, "{}-attempt{}".format(job.id, number))

    def newest_step(self):
        """Of the complete checkpoints; -1 without one."""
        pattern = os.path.join(glob.escape(self.output_dir), "checkpoint-*", "complete.json")
        steps = [os.path.basename(os.path.dirname(path)).rpartition("-")[2] for path in glob.glob(pattern)]
        return max((int(step) for step in steps if step.isdigit()), default=-1)

    def mark(self, name):
        """A file of the output folder."""
        return os.path.join(self.output_dir, name)


def read_json(path):
    """What a file of such a folder says; None where it is not there or not whole."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None
