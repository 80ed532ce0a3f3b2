"""What a stage asks of sbatch, in an environment that the submitting shell does not leak into."""

import os
import re

from slurm.jobs.answers import ask, setting
from slurm.jobs.words import Refusal, make_folder, quoted

# Of a job that this shell is in: SLURM would take these for options, libraries for their place in a world.
_LEAKS = re.compile(
    r"(SLURM|PMI|PMIX|OMPI_COMM|OMPI_UNIVERSE|PALS)_|(MPI_LOCAL\w+|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE"
    r"|NODE_RANK|GROUP_RANK|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_\w+|ACCELERATE_\w+|SLURMD_NODENAME|SLURMD_DEBUG)$"
)
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CONF_SERVER")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def clean(environment):
    """What a new job may inherit. SBATCH_* stay: they are the person's or the site's own."""
    in_job = "SLURM_JOB_ID" in environment
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not (_LEAKS.match(name) or (in_job and name in _DEVICES))
    }


def options_of(site, kind):
    """What a stage asks of SLURM; an empty value is not sent.

    Args:
        kind: prepare, train, export or evaluate.
    """
    prefix = "" if kind == "train" else kind.upper() + "_"
    cpus = "CPUS_PER_TASK" if kind == "train" else prefix + "CPUS"
    asked = [("account", prefix + "ACCOUNT"), ("partition", prefix + "PARTITION")]
    asked += [("cpus-per-task", cpus), ("mem", prefix + "MEMORY"), ("time", prefix + "TIME")]
    options = ["--{}={}".format(name, site.text(key)) for name, key in asked if site.text(key)]
    if kind == "train":
        nodes = site.number("NODES") + site.number("SPARE_NODES")
        options.append("--nodes={}".format(nodes))
        options.append("--signal=B:USR1@{}".format(site.number("SIGNAL_SECONDS")))
        if site.gpus_per_node:
            options.append("--gpus-per-node=" + re.sub("^gpu:", "", site.text("GPUS_PER_NODE")))
        if site.number("SPARE_NODES"):
            options.append("--no-kill")  # a dead node ends no job that has another
    if kind == "evaluate" and site.text("EVALUATE_GPUS") not in ("", "0"):
        options.append("--gpus-per-node=" + re.sub("^gpu:", "", site.text("EVALUATE_GPUS")))
    return options + site.words(prefix + "OPTIONS" if prefix else "SBATCH_OPTIONS")


class Queue:
    """Jobs, each after the one before.

    Attributes:
        previous: id of the job that the next one waits for, '' for none.
        scripts: that were submitted.
    """

    def __init__(self, site, dry_run):
        self.dry_run = dry_run
        self.previous = ""
        self.scripts = set()
        self._site = site
        self._submitted = []

    def submit(self, stage, options, words, also_after=""):
        """Submit a job and print its stage and id; in a dry run, print the command. The id.

        Args:
            stage: as it is printed.
            words: the script and its arguments.
            also_after: a dependency besides the previous job.

        Raises:
            Refusal: sbatch has refused it.
        """
        after = ",".join(filter(None, ["afterok:" + self.previous if self.previous else "", also_after]))
        command = ["sbatch", "--parsable", *options]
        if after:
            command.append("--dependency=" + after)
        if self.previous:
            command.append("--kill-on-invalid-dep=yes")  # if that one fails, this one is cancelled
        command += words
        self.scripts.add(words[0])
        self.previous = self._dry(stage, command) if self.dry_run else self._really(stage, command)
        return self.previous

    def _dry(self, stage, command):
        print(quoted(command))
        return "ID_OF_" + stage

    def _really(self, stage, command):
        make_folder(os.path.dirname(_last_value(command, "--output")))
        code, out, errors = ask(*command, timeout=300, env=clean(os.environ))
        if code or not out.strip():
            raise Refusal(self._refusal(stage, errors.strip() or "exit code {}, no job id".format(code)))
        job = out.strip().splitlines()[-1].partition(";")[0]  # "id;cluster" where there are several
        self._submitted.append(job)
        print("{} {}".format(stage, job), flush=True)
        return job

    def _refusal(self, stage, errors):
        lines = [errors, "sbatch refused {}".format(stage) + self._limits()]
        if self._submitted:
            ids = " ".join(self._submitted)
            lines.append("These jobs are in the queue: {0} (scancel {0})".format(ids))
        return "\n".join(lines)

    def _limits(self):
        """What the site allows, where sbatch's own words rarely say it."""
        found = []
        _, config, _ = ask("scontrol", "show", "config")
        if setting(config, "MaxArraySize"):
            tasks = self._site.text("PREPARE_TASKS")
            found.append("MaxArraySize is {}, PACKHAUL_PREPARE_TASKS {}".format(setting(config, "MaxArraySize"), tasks))
        _, partitions, _ = ask("sinfo", "--noheader", "--format", "%P: %c CPUs, %m MB, %G, limit %l")
        found += sorted(set(partitions.splitlines()))
        return "".join("\n  {}".format(line) for line in found)


def _last_value(command, name):
    """The value of an option written as NAME=VALUE, of which sbatch takes the last."""
    return [word[len(name) + 1 :] for word in command if word.startswith(name + "=")][-1]
