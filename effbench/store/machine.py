"""What this machine is, without saying whose: no host name, user name or path."""

import hashlib
import math
import os
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from effbench.plugin.cell import canonical_json


class Machine(BaseModel):
    """Facts that decide how fast a machine is; results of machines that differ in them never share a ranking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    flags: str
    """Hash of the CPU's feature flags."""
    cores: int
    memory_gib: int
    gpus: tuple[str, ...]
    system: str

    @property
    def slug(self) -> str:
        """A readable name and 8 hex digits, safe as a folder name."""
        cpu = re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*|\d+-core", "", self.cpu.lower())
        words = "-".join([*re.findall(r"[a-z0-9]+", cpu)[:4], f"{self.cores}c", f"{self.memory_gib}g"])
        if self.gpus:
            words += f"-{len(self.gpus)}x" + "-".join(re.findall(r"[a-z0-9]+", self.gpus[0].lower())[:3])
        return f"{words}-{hashlib.sha256(canonical_json(self.model_dump(mode='json')).encode()).hexdigest()[:8]}"


@cache
def this_machine() -> Machine:
    """The machine this process may use: its cores are those it is allowed to run on."""
    cpu, flags = _cpu()
    return Machine(
        cpu=cpu,
        flags=hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:8],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        gpus=gpus(),
        system=f"{platform.system()} {platform.machine()}",
    )


@cache
def gpus() -> tuple[str, ...]:
    """Names and memory of the GPUs that nvidia-smi sees; empty where there is no such program."""
    if not (program := shutil.which("nvidia-smi")):
        return ()
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip()) if answer.returncode == 0 else ()


@cache
def memory_bytes() -> float:
    """Of the whole machine."""
    return float(psutil.virtual_memory().total)


def gpu_memory_bytes() -> float:
    """Of the smallest GPU; infinite where none tells."""
    found = (re.search(r", (\d+) MiB$", line) for line in gpus())
    return min((int(size[1]) * 2.0**20 for size in found if size), default=math.inf)


def _cpu() -> tuple[str, list[str]]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    return (name[1] if name else platform.processor() or platform.machine()), (flags[1].split() if flags else [])
