"""Write docs/compatibility.md from the adapters' own tables.

python scripts/make_compatibility.py          # write it
python scripts/make_compatibility.py --check  # say whether it is up to date
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works in a clone that is not installed too

from sip_plugin.adapters.autoattack import MEMBERS
from sip_plugin.adapters.torchattacks_table import TABLE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"

HEAD = """\
<!-- Written by scripts/make_compatibility.py from the tables in sip_plugin/adapters; do not edit. -->
# Which attacks can be wrapped, and how each is projected

`SIPWrapper(attack, mask_fn)` projects **every step** of an attack. Where, depends on the attack:

- **query**: each query is projected before the network sees it, so the attack works on `f∘P_x`; its gradients are zero on
  salient elements by the chain rule.
- **iterate**: the attack's variable itself is projected whenever the attack marks it for a gradient, and its gradient is
  masked.
- **members**: the attack is made of others, each of which is projected in its own way on the images that it is handed.

All guarantees (salient elements bit for bit, the attack's own ball, equality with the bare attack for a map of zeros, clean
images for a map of ones, as many queries and random draws, nothing left behind) are tests that run over all rows.

How much weaker masking only the result is: [for every attack](../benchmarks/results/attack_strength/table.md). The arguments
there are such that the bare attack works: with short runs of the randomised ones (DI-FGSM at 10 steps, SI-NI-FGSM, Jitter at
its default scale) the two differ by a few images either way with the seed.

## Which map belongs to which query

Attacks do not always ask about the whole batch: some go on with the images that are still robust, some ask about
populations or noisy samples. A query of as many rows as the batch has its order. Where an attack works on one image
after the other (*one image* below), it is handed one at a time, which changes nothing else (but that, in targeted
modes, it also asks for its targets one image at a time). Everywhere else each row belongs to its nearest clean image.
Two nearly identical images with different maps can be taken for each other then; `SIPWrapper(attack, mask_fn,
one_by_one=True)` runs any attack image by image and excludes it, at the price of speed and of the bare attack's
random draws on the batch. Members of composites and the attacks of AutoAttack get their images' maps by exact value;
images that are identical get all their maps together there.
"""

TAIL = """
## Any other library

An object that is called as `attack(images, labels)` and keeps its network in `.model` is projected at its queries. Whatever
has no `.model` is refused with a `TypeError`: there would be no place to project its steps, and masking only its result is
weaker while it looks the same.

## Found upstream

- torchattacks 3.5.1, EADL1 and EADEN: the variable shares its memory with the images, so that the first step moves the
  images themselves and results can leave [0, 1], bare and wrapped alike.
- torchattacks 3.5.1, PGDL2, SparseFool, FAB, Square (L2): fail on channels-last images (`view` of a strided tensor).
- torchattacks 3.5.1, APGDT and Square: fail under autocast to bfloat16.
- torchattacks 3.5.1, APGD and FAB with `norm="L1"`: fail (`AssertionError`, `UnboundLocalError`).
- torchattacks 3.5.1 clamps inputs outside [0, 1] silently; the wrapper raises a `ValueError`.
- pyautoattack 0.2.0 takes float32 images only, and its individual evaluation leaves only the last attack to run (not so
  through the wrapper).
- pyautoattack 0.2.0 writes a state file but cannot resume from it (it compares a set with its own text); the file is written
  through the wrapper as without it.
"""


def page() -> str:
    """The page's text."""
    lines = [HEAD, "## torchattacks 3.5", "", "| Attack | Projected at | One image | Remark |", "|---|---|---|---|"]
    for name, entry in TABLE.items():
        lines.append(f"| {name} | {entry.mechanism.value} | {'yes' if entry.alone else ''} | {entry.reason} |")
    lines += [
        "",
        "A class of your own that is derived from one of these is projected as its parent; one derived from",
        "`torchattacks.attack.Attack` itself, at its queries.",
        "",
        "## AutoAttack (`pyautoattack`, or a module with the original's interface)",
        "",
        "`run_standard_evaluation` and `run_standard_evaluation_individual`, all versions, L∞, L2 and L1;",
        "the network may be a module or a function. Its attacks:",
        "",
        "| Attribute | Projected at |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {mechanism.value} |" for name, mechanism in MEMBERS.items()]
    return "\n".join(lines) + "\n" + TAIL


def main() -> int:
    """Write the page, or check it."""
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE.name} is out of date: python scripts/make_compatibility.py", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
