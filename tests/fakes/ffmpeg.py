"""A fake ffmpeg for machines that have none: it listens to a WAV and cuts it, as `links.transcribe` asks for it.

    install(folder)     # then put the folder on PATH

Its silences are runs of zeros; its "MP3" is the cut WAV. The real program is tried beside it where there is one.
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path
from typing import Any


def install(folder: Path) -> None:
    """Put an executable `ffmpeg` into the folder."""
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    program.chmod(0o755)


def main(words: list[str]) -> int:
    """Do what the command line asks for."""
    given = {words[at]: words[at + 1] for at in range(len(words) - 1) if words[at].startswith("-")}
    try:
        with wave.open(given["-i"], "rb") as sound:
            rate, frames = sound.getframerate(), sound.readframes(sound.getnframes())
    except (wave.Error, EOFError):
        sys.stderr.write("Invalid data found when processing input\n")
        return 1
    samples = memoryview(frames).cast("h")
    if "-af" in given:
        options = dict(part.split("=") for part in given["-af"].removeprefix("silencedetect=").split(":"))
        _listen(samples, rate, float(options["d"]))
    else:
        start = int(float(given["-ss"]) * rate)
        _write(samples[start : start + int(float(given["-t"]) * rate)], rate)
    return 0


def _listen(samples: Any, rate: int, least: float) -> None:
    began = None
    for at, sample in enumerate([*samples, 1]):
        if sample == 0 and began is None:
            began = at
        elif sample != 0 and began is not None:
            if (at - began) / rate >= least:
                sys.stderr.write(f"[silencedetect] silence_start: {began / rate}\n")
                sys.stderr.write(f"[silencedetect] silence_end: {at / rate} | silence_duration: ...\n")
            began = None
    sys.stdout.write(f"out_time_us=0\nout_time_us={int(len(samples) / rate * 1_000_000)}\nprogress=end\n")


def _write(samples: Any, rate: int) -> None:
    with wave.open(sys.stdout.buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.setnframes(len(samples))
        sound.writeframesraw(samples)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
