"""The steps of a training job: srun, the signals that are passed on to it, and its end."""

import glob
import os
import signal
import subprocess
import threading
import time

from slurm.jobs import answers
from slurm.jobs.words import say

# USR1 and TERM go to every process of the step and would end the launcher; the training process sets its own handlers.
# In quotes: what each node expands for itself, above all its own SLURM_NODEID.
_ON_EACH_NODE = """
trap "" USR1 TERM
: >"$PACKHAUL_LOG_DIR/node$SLURM_NODEID.started"
exec python -m train.launch --config_file "$PACKHAUL_LAUNCH_FILE" \\
  --num_machines "$PACKHAUL_STEP_NODES" --num_processes "$PACKHAUL_WORLD_SIZE" --machine_rank "$SLURM_NODEID" \\
  --main_process_ip "$PACKHAUL_MAIN_IP" --main_process_port "$PACKHAUL_MAIN_PORT" \\
  --deepspeed_multinode_launcher standard --tee 3 --log_dir "$PACKHAUL_LOG_DIR/node$SLURM_NODEID" \\
  --module train.sft "$@" --expected_world_size "$PACKHAUL_WORLD_SIZE"
"""
_CHECK = 'trap "" USR1; exec python -m train.check_nodes'
_AGAIN = 5.0  # seconds between two signals
_ASK_AGAIN = 3.0  # seconds between two questions to SLURM


def _nothing():
    """While no step runs."""


class Signals:
    """The signals that ask this script to stop: USR1, or TERM where a site sends nothing else; Ctrl-C in a shell.

    SLURM sends TERM to the training processes as well, for scancel, the time limit or a preemption.
    """

    def __init__(self):
        self.first = ""  # name of the first one that has come
        self.terminated = False
        self.on_first = _nothing

    def install(self):
        """Before anything that takes time: the signal may be early."""
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number, frame):
        self.terminated = self.terminated or number == signal.SIGTERM
        if not self.first:
            self.first = signal.Signals(number).name[len("SIG") :]
            say("{}: asking the training processes to save a checkpoint and stop".format(self.first))
            self.on_first()


class Steps:
    """Runs steps of the job on some of its nodes, one at a time.

    Args:
        environment: slurm.jobs.environment.
        cpus_per_task: of each node.
        gpus: whether SLURM gives the job GPUs.
    """

    def __init__(self, environment, signals, cpus_per_task, gpus):
        self._environment = environment
        self._signals = signals
        self._cpus_per_task = cpus_per_task
        self._sharing = [*answers.overlap(), "--cpu-bind=none", *(["--gpu-bind=none"] if gpus else [])]

    def check(self, nodes, variables):
        """The exit code of the node check, which a signal ends."""
        srun = self._start(nodes, ["--kill-on-bad-exit=1"], ["bash", "-c", _CHECK], variables)
        self._signals.on_first = srun.terminate
        try:
            return ended(srun)
        finally:
            self._signals.on_first = _nothing

    def train(self, nodes, variables, arguments, is_saved):
        """The exit code of the training: one launcher on each node, one world over all of them.

        Args:
            is_saved: whether the training has heard the signal, and has saved.
        """
        command = ["bash", "-c", _ON_EACH_NODE, "launch", *arguments]
        srun = self._start(nodes, ["--kill-on-bad-exit=1", "--label"], command, variables)
        launched = _Launched(srun, variables["PACKHAUL_LOG_DIR"], len(nodes), is_saved)
        self._signals.on_first = launched.forward
        if self._signals.first:
            launched.forward()
        try:
            return ended(srun)
        finally:
            self._signals.on_first = _nothing
            launched.ended.set()

    def _start(self, nodes, flags, words, variables):
        """srun inherits neither --cpus-per-task nor, everywhere, the variables; and its own binding would give each
        launcher, and so all its processes, the CPUs or GPUs of one task."""
        srun = ["srun", "--nodes={}".format(len(nodes)), "--ntasks={}".format(len(nodes)), "--ntasks-per-node=1"]
        srun += ["--nodelist=" + ",".join(nodes), "--cpus-per-task={}".format(self._cpus_per_task), "--export=ALL"]
        srun += [*self._sharing, *flags, *self._environment.srun_flags]
        env = dict(self._environment.variables, **variables)
        # A session of its own: Ctrl-C is for the training processes, and srun would end the step at the second one.
        command = [*srun, *self._environment.command(words)]
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)


class _Launched:
    """A running step that USR1 is passed on to, again and again: processes that are still starting ignore it.

    Through srun, which knows its own step: scancel goes on trying while a job is between two attempts, also when this
    script is dead, and ends the next attempt.
    """

    def __init__(self, srun, log_dir, nodes, is_saved):
        self.ended = threading.Event()
        self._srun, self._log_dir, self._nodes, self._is_saved = srun, log_dir, nodes, is_saved
        self._began = False

    def forward(self):
        """Begin; in a thread that ends with this script."""
        if not self._began:
            self._began = True
            threading.Thread(target=self._forward, daemon=True).start()

    def _forward(self):
        while not (self._is_saved() or self.ended.is_set()):
            # Before its launcher ignores it, the signal would end a task, and with it the job.
            if len(glob.glob(os.path.join(glob.escape(self._log_dir), "node*.started"))) == self._nodes:
                self._srun.send_signal(signal.SIGUSR1)
            self.ended.wait(_AGAIN)


def ended(process):
    """Its exit code at its end; 128 + N where signal N has ended it, as a shell says it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


def ended_by_term(code):
    """Whether this exit code of `ended` says so. SLURM gives TERM to a step and to the script around it, in no order:
    a script that has not heard it yet may see its step end by it."""
    return code == 128 + signal.SIGTERM


def threads_of(cpus_per_task, processes):
    """OMP_NUM_THREADS: an equal share of the node's CPUs."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cpus_per_task // processes))


def wait_until(condition, seconds):
    """Whether it came to hold. Asked every few seconds: a large cluster's controller has much to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_ASK_AGAIN)
    return True
