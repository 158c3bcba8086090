"""Every reader against damaged copies of a small valid file.

Each damage follows from the seed, the name of the format and its number, so that one
can be had again. A process reads them one after another; when it dies or says nothing
for ten seconds, the damage at hand is counted and another process goes on after it.
"""

import contextlib
import io
import resource
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.faults.cloud_formats import CLOUD_FORMATS
from experiments.faults.formats import fingerprint, is_finite
from experiments.faults.outcomes import (
    CRASH,
    GOOD,
    HANG,
    PLAUSIBLE,
    SAME,
    WRONG,
    Campaign,
    judge_error,
)
from experiments.faults.processes import silence_stderr, start_process
from experiments.faults.run_formats import RUN_FORMATS

FORMATS = CLOUD_FORMATS | RUN_FORMATS
"""Every format that is damaged, by the name in the table."""
_PATIENCE = 10.0
_START_PATIENCE = 120.0
# A reader that believes a damaged length must not take the machine's memory with it.
_MOST_MEMORY = 12 << 30
# Headers and tables of contents lie here; half of the damage does too.
_ENDS = 128


def mutate(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Damages a file in one of five ways.

    Args:
      content: The file.
      rng: The source of all randomness; its state advances.

    Returns:
      Other bytes than `content`, and what was done in words.
    """
    while True:
        damaged, what = _mutate(content, rng)
        if damaged != content:
            return damaged, what


def _mutate(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    start = _position(len(content), rng)
    stop = min(start + int(rng.geometric(0.1)), len(content))
    kind = rng.integers(5)
    if kind == 0:
        return content[:start], f"truncation to {start} of {len(content)} bytes"
    if kind == 1:
        damaged = bytearray(content or b"\0")
        bits = []
        for _ in range(min(rng.geometric(0.5), 8)):
            byte, bit = _position(len(damaged), rng), int(rng.integers(8))
            damaged[byte] ^= 1 << bit
            bits.append(f"{byte}.{bit}")
        return bytes(damaged), f"flipped bits {', '.join(bits)}"
    if kind == 2:
        zeros = bytes(stop - start)
        return content[:start] + zeros + content[stop:], f"zeros in {start}:{stop}"
    if kind == 3:
        return content[:stop] + content[start:], f"{start}:{stop} twice"
    noise = rng.bytes(int(rng.geometric(0.1)))
    return (
        content[:start] + noise + content[start:],
        f"{len(noise)} random bytes inserted at {start}",
    )


def _position(length: int, rng: np.random.Generator) -> int:
    """A byte of a file, as often near its ends as anywhere."""
    if length == 0:
        return 0
    place = rng.integers(4)
    if place == 0:
        return int(rng.integers(min(_ENDS, length)))
    if place == 1:
        return length - 1 - int(rng.integers(min(_ENDS, length)))
    return int(rng.integers(length))


class _Sample:
    """A valid file, or folder of files, and what its reader makes of it."""

    def __init__(self, name: str, folder: Path):
        self.form = FORMATS[name]
        self.original, self.copy = folder / "original", folder / "copy"
        self.original.mkdir()
        files = self.form.write(self.original)
        # Some names are random; nothing else may depend on chance.
        files.sort(key=lambda path: (len(path.parts), path.stat().st_size, path))
        self.files = [path.relative_to(self.original) for path in files]
        shutil.copytree(self.original, self.copy)
        self.expected = fingerprint(self.form.read(self.copy))

    def damage(self, rng: np.random.Generator) -> tuple[Path, str]:
        """Damages one file of a fresh copy; returns it and what was done to it."""
        shutil.rmtree(self.copy)
        shutil.copytree(self.original, self.copy)
        file = self.copy / self.files[rng.integers(len(self.files))]
        damaged, what = mutate(file.read_bytes(), rng)
        file.write_bytes(damaged)
        return file, what

    def outcome(self, damaged: Path) -> tuple[str, str]:
        """Reads the copy; returns what came of it and the message, if any."""
        told = io.StringIO()
        with contextlib.redirect_stderr(told), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = self.form.read(self.copy)
            except Exception as error:
                return judge_error(error, damaged.name, self.copy)
        if fingerprint(found) == self.expected:
            return SAME, ""
        if not is_finite(found):
            return WRONG, "a number is NaN or infinite"
        if self.form.checksummed:
            return WRONG, "another result in silence"
        if not self.form.is_whole(damaged):
            return WRONG, "the file is longer than it says"
        return PLAUSIBLE, ""


def read_damaged(
    answers: Connection, name: str, seed: int, first: int, last: int, keep: Path
) -> None:
    """Reads damaged copies `first` to `last` - 1 of a format in this process.

    Args:
      answers: Receives each number before it is tried, and `(outcome, what was done,
        message)` after it.
      name: The format.
      seed: Of the campaign.
      first: Number of the first damage.
      last: Number after that of the last one.
      keep: Folder for the files whose outcome is bad.
    """
    silence_stderr()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, most))
    with tempfile.TemporaryDirectory() as folder:
        sample = _Sample(name, Path(folder))
        for number in range(first, last):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
            damaged, what = sample.damage(rng)
            content = damaged.read_bytes()
            answers.send(f"{what} in {damaged.name} (number {number})")
            outcome, message = sample.outcome(damaged)
            if outcome not in GOOD:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}_{damaged.name}").write_bytes(content)
            answers.send((outcome, message))
    answers.send(None)


def run_mutations(
    folder: Path, *, mutations: int, seed: int, formats: Sequence[str] = tuple(FORMATS)
) -> Campaign:
    """Reads `mutations` damaged files of each format.

    Args:
      folder: Where files whose outcome is bad are kept, by format.
      mutations: How many, of each format.
      seed: Chooses the damage.
      formats: Names of `FORMATS`.

    Returns:
      For each format, how often each outcome came up.
    """
    campaign = Campaign()
    for name in tqdm(formats, "formats", file=sys.stderr, disable=None):
        done = 0
        while done < mutations:
            process, answers = start_process(
                read_damaged, name, seed, done, mutations, folder / name
            )
            fault, message = "writing the sample", "no answer in time"
            patience = _START_PATIENCE
            try:
                while answers.poll(patience):
                    answer = answers.recv()
                    if answer is None:
                        break
                    if isinstance(answer, str):
                        fault, patience = answer, _PATIENCE
                    else:
                        done += 1
                        campaign.add(name, answer[0], fault=fault, message=answer[1])
                        patience = _START_PATIENCE
                else:
                    campaign.add(name, HANG, fault=fault, message=message)
                    done += 1
            except EOFError:
                process.join()
                message = f"the process ended with exit code {process.exitcode}"
                campaign.add(name, CRASH, fault=fault, message=message)
                done += 1
            process.kill()
            process.join()
    return campaign
