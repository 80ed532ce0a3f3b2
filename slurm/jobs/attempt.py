"""One attempt of a training job: the node check, the training, and how it ended."""

import glob
import json
import os
import time

from slurm.jobs import answers, decision, launching, world
from slurm.jobs.run_folders import read_json
from slurm.jobs.words import complain, say

_MARGIN = 60  # seconds beyond SLURM's own patience with a node
_SIGN_OF_LIFE = 60  # seconds for an empty step
_PORT_TRIES = 3  # attempts that may lose their port to another process
_PORT_WORDS = ("eaddrinuse", "address already in use")


class Attempt:
    """One try at the training.

    Attributes:
        ended: how, see slurm.jobs.decision.
        code: the training's exit code.
        slurm: what SLURM says of the job.
        words: what there is to say of its end.
        unfit: names of nodes that the check names.
        lost: names of nodes that no longer answer.
        progress: whether it has left a new checkpoint.
    """

    def __init__(self, here, job, folders, steps, state):
        self.here, self.job, self.folders, self._steps, self._state = here, job, folders, steps, state
        self.log_dir = folders.new_attempt(job)
        self.nodes = state.fit_nodes()
        self.ended, self.code, self.slurm, self.words = decision.FAILED, 0, answers.RUNS, ""
        self.unfit, self.lost, self.progress = [], [], False

    def run(self, arguments):
        """Check the nodes, train, and find out how it ended."""
        before = self.folders.newest_step()
        if os.path.exists(self.folders.mark("preempted.json")):
            os.remove(self.folders.mark("preempted.json"))
        variables = self._variables()
        self.ended = self._checked(variables) or self._stopped_early() or self._trained(variables, arguments)
        self.progress = self.folders.newest_step() > before

    def _variables(self):
        """What the steps read."""
        wanted = self.here.number("NODES")
        names = {"OUTPUT_DIR": self.folders.output_dir, "DATA_DIR": self.folders.data, "MODEL_DIR": self.folders.model}
        names.update(LOG_DIR=self.log_dir, LAUNCH_FILE=self.here.launch_file, STEP_NODES=str(wanted))
        names.update(WORLD_SIZE=str(self.here.world_size), SHARED_DIRS_JSON=json.dumps(self.here.words("SHARED_DIRS")))
        gpus = self.here.gpus_per_node
        names.update(GPUS_PER_NODE="" if gpus is None else str(gpus))  # without their type
        names.update(PROCS_PER_NODE=str(self.here.processes_per_node))
        # By attempt: a network file system remembers names that were absent.
        names["TOKEN"] = ".visible-{}".format(os.path.basename(self.log_dir))
        variables = {"PACKHAUL_" + name: value for name, value in names.items()}
        threads = launching.threads_of(self.job.cpus_per_task, self.here.processes_per_node)
        # The launcher would pass TERM on and kill the training 30 s later, in the middle of a save.
        variables.update(OMP_NUM_THREADS=threads, PET_SIGNALS_TO_HANDLE="SIGINT")
        return variables

    def _meet(self, variables, nodes):
        """Where these nodes' processes meet."""
        port = world.free_port(self.job, nodes[0], self._state.ports_lost)
        names = {"MAIN_IP": nodes[0], "MAIN_PORT": str(port), "NODE_NAMES": " ".join(nodes)}
        variables.update({"PACKHAUL_" + name: value for name, value in names.items()})

    def _checked(self, variables):
        """Look at every node; how the attempt has ended by that, or None where enough nodes are fit."""
        if not self.here.number("CHECK_NODES"):
            return None
        self._meet(variables, self.nodes)
        shown = [*self.here.words("SHARED_DIRS"), self.folders.output_dir]
        tokens = [os.path.join(folder, variables["PACKHAUL_TOKEN"]) for folder in shown]
        try:
            for token in tokens:
                open(token, "w").close()
            self.code = self._steps.check(self.nodes, variables)
        finally:
            for token in filter(os.path.exists, tokens):
                os.remove(token)
        if self.code == 0:
            return None
        return self._unfit()

    def _unfit(self):
        found = read_json(os.path.join(self.log_dir, "unfit.json")) or {}
        for name, problems in found.items():
            self.unfit.append(name)
            self._state.leave_out(name, "; ".join(problems))
        left = [name for name in self.nodes if name not in found]
        if self._state.signals.first and not found:
            return None  # the signal has ended it
        if found and len(left) >= self.here.number("NODES"):
            return None  # trains without them
        self.slurm = self._state_of_job()
        if not found:
            return self._check_said_nothing()
        self.words = "the node check has found what is named above (exit code {})".format(self.code)
        return decision.UNFIT

    def _check_said_nothing(self):
        """It did not run on every node, or died: a node that does not answer is left out."""
        self.words = "the node check ended with exit code {} and names no node".format(self.code)
        if self.slurm == answers.RUNS:
            self._await_node_failure(self.nodes)
        return decision.NODE_LOST if self.lost or self.slurm == answers.GAVE_UP else decision.UNFIT

    def _stopped_early(self):
        """Whether a signal has come already: a training would load the model only to stop."""
        if not self._state.signals.first:
            return None
        self.slurm = self._state_of_job()
        self.words = "asked to stop before the training has begun"
        return decision.NOT_BEGUN

    def _trained(self, variables, arguments):
        """Train on the first of the nodes that are fit; how it ended."""
        fit = [name for name in self.nodes if name not in self.unfit]
        nodes = fit[: self.here.number("NODES")]
        self._meet(variables, nodes)
        say(
            "world of {}: {} node(s) x {} process(es), {}:{}, {} thread(s) each; logs by rank in {}".format(
                self.here.world_size,
                len(nodes),
                self.here.processes_per_node,
                nodes[0],
                variables["PACKHAUL_MAIN_PORT"],
                variables["OMP_NUM_THREADS"],
                self.log_dir,
            )
        )
        self.code = self._steps.train(nodes, variables, arguments, self._is_saved)
        return self._how(nodes)

    def _is_saved(self):
        return os.path.exists(self.folders.mark("preempted.json"))

    def _how(self, nodes):
        if self.code == 0 and not self._is_saved():
            is_complete = os.path.exists(self.folders.mark("complete.json"))
            self.words = "{}: {}".format(self.folders.output_dir, "done" if is_complete else "complete.json is missing")
            return decision.COMPLETE if is_complete else decision.UNFINISHED
        self.slurm = self._state_of_job()
        if self.code == 0:
            self.words = "preempted, checkpoint saved: {}".format(self._saved_step())
            return decision.SAVED
        return self._how_it_failed(nodes)

    def _how_it_failed(self, nodes):
        self.words = "training ended with exit code {}".format(self.code)
        if self._state.signals.terminated:
            say("stopped by SLURM (TERM); checkpoint saved on the way out: {}".format(self._saved_step()))
        if any(launch.get("exit_code") == 2 for launch in self._read_all("launch-node*.json")):
            self.code = 2
            self.words = "training ended with exit code 2"
            return decision.REFUSED
        if self._port_was_taken() and self._state.ports_lost < _PORT_TRIES:
            return decision.PORT_TAKEN
        if not self._state.signals.terminated and self.slurm == answers.RUNS:
            self._await_node_failure(nodes)
        return decision.NODE_LOST if self.lost or self.slurm == answers.GAVE_UP else decision.FAILED

    def _port_was_taken(self):
        message = (self.first_error() or {}).get("message", "").lower()
        return any(word in message for word in _PORT_WORDS)

    def _saved_step(self):
        try:
            with open(self.folders.mark("preempted.json"), encoding="utf-8") as file:
                return file.read().replace("\n", "")
        except OSError:
            return "none"

    def _state_of_job(self):
        code, out = answers.show_job(self.job.id)
        return answers.RUNS if code else answers.job_state(out, self.job.restarts)

    def _await_node_failure(self, nodes):
        """The training may learn of a dead node long before SLURM, whose SlurmdTimeout is 300 s as a rule. A job that
        ended now would have failed; so let SLURM find out, which starts it again. Where all answer, it takes a second.
        """
        if len(nodes) == 1:
            return
        say("exit code {}: do all nodes still answer?".format(self.code))
        step = ["srun", "--ntasks={}".format(len(nodes)), "--ntasks-per-node=1", "--nodes={}".format(len(nodes))]
        step += answers.overlap()
        code, _, errors = answers.ask(*step, "--nodelist=" + ",".join(nodes), "true", timeout=_SIGN_OF_LIFE)
        if code == 0:
            return
        self._look_for_lost(nodes)
        if code != 124 and not self.lost:  # only silence is a sign of a dead node
            say("srun could not ask them: {}".format(errors.strip() or "exit code {}".format(code)))
            self.slurm = self._state_of_job()
            return
        if self.here.number("SPARE_NODES") and self.lost:
            return
        self._wait_for_slurm(nodes)

    def _look_for_lost(self, nodes):
        """Ask SLURM for the state of the nodes."""
        _, out, _ = answers.ask("sinfo", "--noheader", "--Node", "--format", "%N|%T", "--nodes", ",".join(nodes))
        for name in answers.lost_nodes(out):
            if name not in self.lost:
                self.lost.append(name)
            self._state.leave_out(name, "it does not answer")

    def _wait_for_slurm(self, nodes):
        _, config, _ = answers.ask("scontrol", "show", "config")
        seconds = answers.slurmd_timeout(config) + _MARGIN
        say(
            "a node does not answer: waiting up to {} s for SLURM to notice it and to start this job again".format(
                seconds
            )
        )

        def has_noticed():
            self.slurm = self._state_of_job()
            self._look_for_lost(nodes)
            spare = self.here.number("SPARE_NODES") and self.lost
            return bool(spare) or self.slurm in (answers.RESTARTS, answers.GAVE_UP, answers.CANCELLED)

        launching.wait_until(has_noticed, seconds)

    def write_down(self, follows):
        """Leave how it ended in its folder, for the run's record, which the next start completes (train.run.starts)."""
        content = {"time": time.time(), "ended": self.ended, "slurm": self.slurm, "decision": follows}
        content.update(exit_code=self.code, words=self.words, lost=self.lost, unfit=self.unfit)
        path = os.path.join(self.log_dir, "decision.json")
        try:
            with open(path + ".tmp", "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(path + ".tmp", path)
        except OSError as error:  # a full disk must not end a job that can still be requeued
            say("{} cannot be written: {}".format(path, error))

    def first_error(self):
        """What the first process that failed by itself has said; None where none could say anything."""
        errors = self._read_all("error-rank*.json")
        return min(errors, key=lambda found: (found.get("consequence", False), found.get("time", 0)), default=None)

    def say_first_error(self):
        """The last line of the log is the first error itself."""
        if self.ended in (decision.COMPLETE, *decision.STOPPED):
            return
        say("the log of each rank is in {}".format(self.log_dir))
        error = self.first_error()
        hung = read_json(os.path.join(self.log_dir, "hung.json"))
        time.sleep(0.1)  # what srun still writes comes before
        is_cause = error and not error.get("consequence")
        if hung and not is_cause:
            complain(hung["message"])
        elif not is_cause and self._say_who_failed():
            pass  # it could say nothing itself
        elif error:
            complain("rank {rank} on {host}: {message}".format(**error))

    def _say_who_failed(self):
        """Whoever ended first, such as by a signal, and could say nothing; whether there is one."""
        failed = [launch for launch in self._read_all("launch-node*.json") if launch.get("exit_code")]
        if failed:
            complain(
                "{who} on {host} ended with exit code {exit_code}, and said nothing".format(
                    **min(failed, key=lambda one: one["time"])
                )
            )
        return bool(failed)

    def _read_all(self, pattern):
        """What the files of these names in the attempt's folder say."""
        files = glob.glob(os.path.join(glob.escape(self.log_dir), pattern))
        return [found for found in map(read_json, files) if found]
