"""Packs what a GPU machine without a package index needs into .whl/, and says what to run there.

    bash tests/gpu/carry.sh          # or python -m tests.gpu.carry, in the environment of `make install`

.whl/ gets the wheels that the machine lacks, in the versions of constraints.txt, the commit (COMMIT), and run.sh, which
starts tests/gpu/run.sh of the tree that travels with it. Wheels are for CPython 3.12 on x86-64 Linux.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_MIB = 60  # of the 64 MiB that may travel beside the tree, which is counted too
PYTHON = "3.12"
# The machine has torch, triton, accelerate, tokenizers, huggingface_hub, safetensors, numpy, pandas, pyarrow, xxhash,
# regex, tiktoken, jinja2, fsspec, charset-normalizer, psutil, pyyaml, ninja and pytest with xdist and timeout. Its
# transformers and peft are older than pyproject.toml asks for.
LACKED = (
    "trl", "datasets", "transformers", "peft", "rensa", "dill", "multiprocess", "pydantic", "pydantic_core",
    "annotated-types", "typing_extensions", "typing-inspection", "hjson", "bitsandbytes",
)  # fmt: skip
FROM_SOURCE = ("deepspeed",)  # without its compiled parts the wheel is plain Python
OPTIONAL = {"liger-kernel": "0.8.5"}  # measured only; no dependency, so constraints.txt does not name it
GLIBC = ("2_28", "2_27", "2_24", "2_17")
RUN = """#!/usr/bin/env bash
# bash .whl/run.sh SECONDS [STAGE...]
exec bash "$(dirname "$0")/../tests/gpu/run.sh" "$@"
"""


def main(argv: list[str] | None = None) -> int:
    """Download, make smaller, check, and say what to do; 2 if something is missing or too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".whl")
    folder = parser.parse_args(argv).folder
    try:
        collect(folder, (ROOT / "constraints.txt").read_text())
        finish(folder, ROOT)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"carry: error: {error}", file=sys.stderr)
        return 2
    return 0


def collect(folder: Path, constraints: str) -> None:
    """Fresh wheels into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    pip = [sys.executable, "-m", "pip"]
    wanted = [f"{name}=={version}" for name, version in {**pinned(constraints, LACKED), **OPTIONAL}.items()]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    target += [part for glibc in GLIBC for part in ("--platform", f"manylinux_{glibc}_x86_64")]
    target += [part for old in ("2014", "1") for part in ("--platform", f"manylinux{old}_x86_64")]
    subprocess.run([*pip, "download", "-q", "--no-deps", *target, "-d", str(folder), *wanted], check=True)
    sources = [f"{name}=={version}" for name, version in pinned(constraints, FROM_SOURCE).items()]
    built = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--use-pep517", "-w", str(folder), *sources]
    subprocess.run([*pip, *built], check=True, env={**os.environ, "DS_BUILD_OPS": "0"})
    for wheel in folder.glob("bitsandbytes-*.whl"):
        keep_libraries(wheel, {"libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"})


def pinned(constraints: str, names: Iterable[str]) -> dict[str, str]:
    """The version of each package.

    Raises:
        ValueError: one is not in constraints.txt.
    """
    versions = {canonical(n): v for n, v in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", constraints, re.MULTILINE)}
    if missing := [name for name in names if canonical(name) not in versions]:
        raise ValueError(f"constraints.txt names no version of {', '.join(missing)}: add it there")
    return {name: versions[canonical(name)] for name in names}


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def keep_libraries(wheel: Path, kept: set[str]) -> None:
    """Leave out the shared libraries for other versions of CUDA, nine tenths of the wheel.

    Raises:
        ValueError: one to keep is not there.
    """
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        names = [name for name in old.namelist() if not name.endswith(".so") or Path(name).name in kept]
        if absent := kept - {Path(name).name for name in names}:
            raise ValueError(f"{wheel.name} has no {', '.join(sorted(absent))}: the machine's CUDA needs it")
        record, lines = next(name for name in names if name.endswith(".dist-info/RECORD")), []
        for name in (name for name in names if name != record):
            data = old.read(name)
            new.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(data)}")
        new.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    part.replace(wheel)


def finish(folder: Path, root: Path) -> None:
    """Check all that travels, add the commit and the command, and say what to do.

    Raises:
        ValueError: see `check`.
    """
    check([wheel.name for wheel in folder.glob("*.whl")])
    (folder / "COMMIT").write_text(state_of_tree(root) + "\n")
    (folder / "run.sh").write_text(RUN)
    tree, wheels = tree_bytes(root), sum(file.stat().st_size for file in folder.iterdir())
    mib = (tree + wheels) / 2**20
    print(f"the tree {tree / 2**20:.1f} MiB, {folder.name} {wheels / 2**20:.1f} MiB: {mib:.1f} of {LIMIT_MIB} MiB")
    if mib > LIMIT_MIB:
        raise ValueError(f"{mib:.1f} MiB is too much to travel: expected at most {LIMIT_MIB}")
    print(f"On the GPU machine, in the tree, with {folder.name} beside it:")
    print("    bash .whl/run.sh 440         # limit the call to 470 s")
    print("    bash .whl/run.sh SECONDS     # again, on the same machine: goes on with what has not ended well")


def check(names: list[str]) -> None:
    """One wheel of each package, for the machine's Python and platform.

    Args:
        names: of the wheels' files.

    Raises:
        ValueError: says which wheel is missing, double, or for another machine.
    """
    count = Counter(canonical(name.split("-")[0]) for name in names)
    expected = {canonical(name) for name in (*LACKED, *FROM_SOURCE, *OPTIONAL)}
    problems = [f"no wheel of {name}" for name in sorted(expected - count.keys())]
    problems += [f"{n} wheels of {name}" for name, n in count.items() if n > 1]
    problems += [f"{name} was not asked for" for name in sorted(count.keys() - expected)]
    problems += [f"{name} does not fit CPython {PYTHON} on x86-64" for name in names if not fits(name)]
    if problems:
        raise ValueError("; ".join(problems))


def fits(name: str) -> bool:
    """Whether a wheel's tags are those of CPython 3.12 on x86-64 Linux."""
    python, abi, platform = name.removesuffix(".whl").split("-")[-3:]
    if platform == "any":
        return abi == "none" and any(tag in ("py3", "py312") for tag in python.split("."))
    stable = [int(tag[3:]) for tag in python.split(".") if re.fullmatch(r"cp3\d+", tag)]
    right = {"none": "py3" in python.split("."), "abi3": any(n <= 12 for n in stable), "cp312": 12 in stable}
    return right.get(abi, False) and all(re.fullmatch(r"(many)?linux.*_x86_64", part) for part in platform.split("."))


def state_of_tree(root: Path) -> str:
    """The commit, with a digest of what is changed against it; "unknown" outside of a clone."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "diff", "HEAD"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else head


def tree_bytes(root: Path) -> int:
    """Size of the files that travel: tracked ones, and new ones that git does not ignore."""
    listing = ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, check=True).stdout.split(b"\0")
    files = [root / os.fsdecode(name) for name in names if name]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
