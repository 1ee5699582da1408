"""Reading videos: seconds, beside a loop around PyAV by hand.

    python benchmarks/video_reading.py [FOLDER]

Of each video below FOLDER (those of `make clips` by default): counting the frames, with as many threads as FFmpeg
takes; all of them at five a second, and eight at ten a second from the middle on, with one thread. By hand every frame
is decoded by one thread and converted to RGB, and what isn't wanted is dropped. Medians of three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
from _measure import machine, median_seconds

from ul_tokenizer.media.videos import VIDEO_SUFFIXES, count_frames, probe, read_frames

CLIPS = Path("~/.cache/ul_tokenizer/clips").expanduser()


def by_hand(path: Path) -> None:
    """Every frame, as most scripts read a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            frame.to_ndarray(format="rgb24")


def part(path: Path, **options: float) -> None:
    """Reads and forgets."""
    for _ in read_frames(path, threads=1, **options):  # type: ignore[arg-type]
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=CLIPS)
    args = parser.parse_args()
    paths = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        parser.error(f"there is no video in {args.folder}; `make clips` fetches some.")
    print(machine())
    print("video                     pixels     frames   by hand   counting   five a second   eight from the middle")
    for path in paths:
        info, count = probe(path), count_frames(path)
        middle = count / info.rate / 2
        calls = (
            lambda path=path: by_hand(path),
            lambda path=path: count_frames(path),
            lambda path=path: part(path, fps=5),
            lambda path=path, middle=middle: part(path, start=middle, num_frames=8, fps=10),
        )
        hand, *ours = (median_seconds(call, runs=3, warmup=1) for call in calls)
        cells = "".join(f"{seconds:9.3f} s (÷ {hand / seconds:4.1f})" for seconds in ours)
        print(f"{path.name:24}{info.width:5}×{info.height:<6}{count:6}{hand:9.3f} s{cells}")


if __name__ == "__main__":
    main()
