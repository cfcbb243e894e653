"""The paper's human study (section 4.5): whether people see that an image was perturbed.

python -m benchmarks.human_study stimuli --dataset digits --out out/study/stimuli
python -m benchmarks.human_study serve --stimuli out/study/stimuli --data out/study/data --preview
python -m benchmarks.human_study simulate --url http://127.0.0.1:8000 --stimuli out/study/stimuli
python -m benchmarks.human_study analyse --data out/study/data --out out/study/analysis
python -m benchmarks.human_study power
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

_COMMANDS = {
    "stimuli": "make the images",
    "serve": "show them to participants, and keep the answers",
    "simulate": "send the answers of simulated participants to a server",
    "analyse": "tables and figure from the answers",
    "power": "how wide the intervals of 50, 100 and 330 participants are, and how often they hold the truth",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.human_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in given[:1]:  # each needs packages that the others do not
            module = importlib.import_module(f"benchmarks.human_study.{name}")
            module.add_arguments(command)
    options = parser.parse_args(given)
    try:
        return module.run(options) or 0
    except (OSError, ValueError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
