"""How long it takes to parse prompts with weights, and to turn them into chunks.

python tests/benchmarks/emphasis.py [--prompts 10000] [--rounds 5]

The prompts are lists of tags as people write them, a third of them weighted. Times are processor time on one core, the
best of the rounds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core

import argparse
import random
import time
from collections.abc import Callable

from hcpdiff.models.text.chunks import tokenize
from hcpdiff.models.text.emphasis import parse
from hcpdiff.models.text.reading import Reading
from tests.models.tiny import tiny_tokenizer

TAGS = ["masterpiece", "red hair", "long dress", "artist_\\(style\\)", "city at night", "from above", "smile", "rain"]
SIGNS = ["({}:1.2)", "({})", "(({}))", "[{}]", "({}:0.8)", "{} BREAK"]


def prompts(count: int) -> list[str]:
    """Of 5 to 40 tags."""
    rng = random.Random(0)

    def tag() -> str:
        chosen = rng.choice(TAGS)
        return rng.choice(SIGNS).format(chosen) if rng.random() < 1 / 3 else chosen

    return [", ".join(tag() for _ in range(rng.randint(5, 40))) for _ in range(count)]


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Processor time of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    texts = prompts(args.prompts)
    size = sum(map(len, texts))
    parsing = seconds(lambda: [parse(text) for text in texts], args.rounds)
    speed = f"{parsing:.2f} s, {size / parsing / 1e6:.1f} MB/s"
    print(f"parse    {args.prompts} prompts of {size / len(texts):.0f} letters: {speed}")
    tokenizer, some = tiny_tokenizer(77), texts[: args.prompts // 10]
    for name, reading in {"as text": Reading(), "weighted": Reading("webui", 4)}.items():
        taken = seconds(lambda reading=reading: tokenize({"clip": (tokenizer, 77)}, some, reading), args.rounds)
        print(f"tokenize {name:8} {len(some)} prompts: {taken:.2f} s, {taken / len(some) * 1e6:.0f} us each")


if __name__ == "__main__":
    main()
