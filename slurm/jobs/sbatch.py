"""What a stage asks of sbatch, in an environment that the submitting shell does not leak into."""

import os
import re

from slurm.jobs.answers import ask, setting
from slurm.jobs.words import Refusal, make_folder, quoted, tell

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
    options = ["--{}={}".format(name, site.text(variable)) for name, variable in _plain(kind) if site.text(variable)]
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
    return options + site.words(_more(kind))


def variables_of(site, kind):
    """The same as lines of slurm/env.sh, for a person who has to change one: PACKHAUL_NODES=2."""
    names = [variable for _, variable in _plain(kind)]
    names += {"train": ["NODES", "SPARE_NODES", "GPUS_PER_NODE"], "evaluate": ["EVALUATE_GPUS"]}.get(kind, [])
    given = [(name, site.text(name)) for name in [*names, _more(kind)]]
    return ["PACKHAUL_{}={}".format(name, quoted([value])) for name, value in given if value not in ("", "0")]


def _plain(kind):
    """Options of sbatch that a variable holds as they are, and that variable."""
    prefix = "" if kind == "train" else kind.upper() + "_"
    cpus = "CPUS_PER_TASK" if kind == "train" else prefix + "CPUS"
    where = [("account", prefix + "ACCOUNT"), ("partition", prefix + "PARTITION")]
    return [*where, ("cpus-per-task", cpus), ("mem", prefix + "MEMORY"), ("time", prefix + "TIME")]


def _more(kind):
    return "SBATCH_OPTIONS" if kind == "train" else kind.upper() + "_OPTIONS"


class Queue:
    """Jobs, each after the one before.

    Attributes:
        previous: id of the job that the next one waits for, '' for none.
        scripts: that were submitted.
        submitted: ids of the jobs that are in the queue.
    """

    def __init__(self, site, dry_run):
        self.dry_run = dry_run
        self.previous = ""
        self.scripts = set()
        self._site = site
        self.submitted = []

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
            raise Refusal(self._refusal(stage, command, errors.strip() or "exit code {}, no job id".format(code)))
        job = out.strip().splitlines()[-1].partition(";")[0]  # "id;cluster" where there are several
        self.submitted.append(job)
        print("{} {}".format(stage, job), flush=True)
        tell("its log: " + re.sub("%[jA]", job, _last_value(command, "--output")))
        return job

    def _refusal(self, stage, command, errors):
        script = next(word for word in command if word.endswith(".sbatch"))
        kind = os.path.splitext(os.path.basename(script))[0]
        lines = [errors, "sbatch refused {}, for which slurm/env.sh or your shell says:".format(stage)]
        lines += ["  " + line for line in variables_of(self._site, kind)]
        lines.append("Change what does not fit (`sacctmgr show assoc user=$USER` lists accounts). This cluster has:")
        lines += self._limits(kind)
        if self.submitted:
            ids = " ".join(self.submitted)
            lines.append("These jobs are in the queue: {0} (scancel {0})".format(ids))
        return "\n".join(lines)

    def _limits(self, kind):
        """What the site allows, where sbatch's own words rarely say it."""
        _, partitions, _ = ask("sinfo", "--noheader", "--format", "%P: %D nodes, each %c CPUs, %m MB, %G, limit %l")
        found = ["partition " + line for line in sorted(set(partitions.splitlines()))]
        if kind == "prepare" and self._site.number("PREPARE_TASKS") > 1:
            _, config, _ = ask("scontrol", "show", "config")
            tasks = self._site.text("PREPARE_TASKS")
            found.append("MaxArraySize is {}, PACKHAUL_PREPARE_TASKS {}".format(setting(config, "MaxArraySize"), tasks))
        return ["  " + line for line in found]


def _last_value(command, name):
    """The value of an option written as NAME=VALUE, of which sbatch takes the last."""
    return [word[len(name) + 1 :] for word in command if word.startswith(name + "=")][-1]
