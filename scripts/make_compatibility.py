"""Write docs/compatibility.md from the adapters' own tables.

python scripts/make_compatibility.py          # write it
python scripts/make_compatibility.py --check  # say whether it is up to date
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works in a clone that is not installed too

from sip_plugin.adapters.autoattack import MEMBERS
from sip_plugin.adapters.specs import ART, FOOLBOX, TORCHATTACKS
from tests.adapters.function_rows import LIBRARIES, OUTSIDE, TABLE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"

HEAD = """\
<!-- Written by scripts/make_compatibility.py from the tables in sip_plugin/adapters and tests/adapters; do not edit. -->
# Which attacks can be wrapped, and how each is projected

`SIPWrapper(attack, mask_fn)` projects **every step** of an attack. Where, depends on the attack:

- **query**: each query is projected before the network sees it, so the attack works on `f∘P_x`; its gradients are zero on
  salient elements by the chain rule.
- **iterate**: the attack's variable itself is projected whenever the attack marks it for a gradient, and its gradient is
  masked.
- **iterate** in ART, whose attacks work on NumPy arrays: each query is projected, and the queried array, which is the
  attack's variable, is projected in place.
- **members**: the attack is made of others, each of which is projected in its own way on the images that it is handed.

All guarantees (salient elements bit for bit, the attack's own ball, equality with the bare (unwrapped) attack for a map of
zeros, clean images for a map of ones, as many queries and random draws, nothing left behind) are tests that run over all
rows.

What masking only the result costs, for every attack:
[torchattacks](attack_strength.md#torchattacks), [ART](attack_strength.md#art),
[Foolbox](attack_strength.md#foolbox), [others](attack_strength.md#functions-and-other-objects). The
arguments there are such that the bare attack works: with short runs of the randomised ones (DI-FGSM at 10 steps,
SI-NI-FGSM, Jitter at its default scale) the two differ by a few images either way with the seed.

## Which map belongs to which query

Attacks do not always ask about the whole batch: some go on with the images that are still robust, some take the batch in
pieces. A query of as many rows as the batch is taken to have its order (an attack of your own that shuffles its batch
needs `one_by_one=True`). A library's own attack that goes on with part of its batch selects it by an index (*selects*
below, and all of ART's): the wrapper sees that index, so that identical images with different maps are told apart, too.
Where an attack works on one image after
the other (*one image* below), it is handed one at a time, which changes nothing else (but that, in targeted modes, it
also asks for its targets one image at a time). Any other attack, also one derived from a library's, that asks about
another number of rows than the batch has runs one image at a time, with a warning, as with `SIPWrapper(attack, mask_fn,
one_by_one=True)`. Where the map marks nothing there is nothing to tell apart: the batch stays whole, and the result is
the bare attack's bit for bit. A result that has left the ball that APGD, FAB or Square names is an error.
"""

ART_HEAD = """
## ART 1.20 (`adversarial-robustness-toolbox`)

The wrapper is an `EvasionAttack` and goes wherever ART takes one, its trainers included. Projection happens at the
classifier (`predict`, `loss_gradient`, `class_gradient`, `compute_loss`, `get_activations`), in the space of `x`: before
any preprocessing or defence, for any `clip_values`, channels first or last. Queries are cast to float32 (or float64 for a
network in it). ART's own `mask` (1 = may change) is intersected with the map, and works for every attack; where an
attack's native mask can be trusted with a map for each image, it is used besides the projection (*native mask*), so that
random starts spend no budget on salient elements.

*At once* is what one call of the attack's own `generate` is handed where the map marks anything: all images, pieces of its
`batch_size`, or one image. Where an attack runs image by image or piece by piece, one progress bar counts the images of
the batch, images of which nothing may change are left out, and ART's `predict` is called more often, whose data loader
draws a number from torch's generator each time (the attacks themselves draw from NumPy's, as often as the bare ones). What
an attack leaves in its attributes (SignOPTAttack's `logs`) is that of its last part then.

A map for one call is `generate(x, y, salience=...)` (1 = may not change); `mask=` is ART's own. A wrapped attack among
those of a wrapped AutoAttack keeps to both maps.

| Attack | Projected at | Native mask | At once | Remark |
|---|---|---|---|---|
"""

ART_REFUSED = """
Refused with a `TypeError` that says why: classifiers that are not PyTorch's, and

| Attack | Reason |
|---|---|
"""

FOOLBOX_HEAD = """
## Foolbox 3.3

`SIPWrapper(attack, mask_fn)(fmodel, inputs, criterion, epsilons=...)` gives raw images, clipped images and success, as
Foolbox does, for `PyTorchModel` with any bounds and preprocessing. Every attack asks about the whole batch in its order,
so each query's image is known. What `run` gives is projected before Foolbox cuts it to the budget, so that salient
elements do not count there; the clipped images are what `success` was judged by. `.repeat(n)` repeats with one map. A
wrapped `init_attack` keeps its own map for the starting points only.

| Attack | Remark |
|---|---|
"""

FOOLBOX_REFUSED = """
Refused with a `TypeError` that says why:

| Attack | Reason |
|---|---|
"""

FUNCTIONS_HEAD = """
## Functions and other objects

A function, given as `functools.partial(function, model, ...)`, and an object that is called as `attack(images, labels)` and
keeps its network in `.model` are [projected at their queries](howto/functions.md). Whatever has neither is refused with a
`TypeError`: there would be no place to project its steps, and masking only its result is weaker while it looks the same.
Projecting the iterate instead was tried on most of torchattack's attacks, and made none stronger but by single images.
Where *one image* is noted an attack asks about parts or copies of its batch, and runs one image at a time where the map
marks anything. `transferattack` 1.1 is an empty distribution on the package index: there is nothing to wrap.
"""

FUNCTIONS_OUTSIDE = """
Not among the rows of the tests:

| Attack | Reason |
|---|---|
"""

TAIL = """
## Found upstream

- adv_lib 0.2.8 imports `visdom`, which no longer builds, and CleverHans 4.0.0 requires `tensorflow-probability`, which its
  PyTorch attacks do not use: `pip install --no-deps adv-lib cleverhans`, and `import secmlt.adv.evasion` (SecML-Torch)
  before adv_lib, which stands in for visdom.
- SecML-Torch 1.5: the Foolbox backend goes past a classifier's preprocessing, bare and wrapped alike.
- adv_lib 0.2.8, `carlini_wagner_l2`: fails with fewer than 10 iterations (`ZeroDivisionError`).
- torchattack 1.7.2, MIG: makes the true class more likely; with `targeted=True` and the true labels it attacks.
- torchattack 1.7.2, GeoDA: searches for ever where no random noise fools the network, writes a file into its own package,
  and is not meant for more than one image at a time.
- CleverHans 4.0.0, `hop_skip_jump_attack`: an `AssertionError` where no random image fools the network; takes no labels.
- torchattacks 3.5.1, EADL1 and EADEN: the variable shares its memory with the images, so that the first step moves the
  images themselves and results can leave [0, 1], bare and wrapped alike.
- torchattacks 3.5.1, JSMA, PGDL2, SparseFool, FAB, Square (L2): fail on images that are not contiguous (`view` of a
  strided tensor); not so through the wrapper, which hands them contiguous copies.
- torchattacks 3.5.1, APGDT and Square: fail under autocast to bfloat16.
- torchattacks 3.5.1, APGD and FAB with `norm="L1"`: fail (`AssertionError`, `UnboundLocalError`).
- torchattacks 3.5.1 clamps inputs outside [0, 1] silently; the wrapper raises a `ValueError`.
- pyautoattack 0.2.0 takes float32 images only, and its individual evaluation leaves only the last attack to run (not so
  through the wrapper).
- pyautoattack 0.2.0: APGD-T, APGD-DLR, and in L2 APGD-CE and Square, fail on images that are not contiguous; not so through
  the wrapper or `evaluate_robustness`.
- pyautoattack 0.2.0 and autoattack: Square in L2 fails on images of some sizes (12, 14, 18, 19, 24 pixels a side; 24×32), in
  the last attack after all the work. `evaluate_robustness` says so before it.
- pyautoattack 0.2.0 writes a state file but cannot resume from it (it compares a set with its own text); the file is
  written through the wrapper as without it.

Native masks of ART 1.20.1 that are not what they say:

- AutoProjectedGradientDescent (`auto_projected_gradient_descent.py`, line 422), AutoConjugateGradient and
  RescalingAutoConjugateGradient (both line 427): the random start is not masked, so masked elements change.
- The same three (lines 487, 506, 516): a mask for each image is multiplied with the perturbation of the images still
  robust, and of one piece of the batch, without being cut to them: wrong rows, or an error. The wrapper does not use it.
- AutoAttack (`auto_attack.py`, lines 227 and 284) hands its mask uncut to its attacks, which attack some of the images.
- HopSkipJump (`hop_skip_jump.py`, line 176) writes the masked starting points into the caller's `x_adv_init`; the wrapper
  hands it a copy.
- FastGradientMethod, BasicIterativeMethod, MomentumIterativeMethod and ProjectedGradientDescent mask their random start
  and every gradient; a mask with the images' number of dimensions must have a row for each image, or later pieces get
  none.

Other findings in ART 1.20.1:

- HopSkipJump, BoundaryAttack and BrendelBethgeAttack ask in float64 on NumPy 2 and crash on a float32 network; they work
  wrapped.
- The same three draw their starting points from generators that they seed from the system (`RandomState()`), so that two
  bare runs under one seed differ.
- GeoDA fails on NumPy 2 (`np.mat`), wrapped as bare; where NumPy has it, it works wrapped.
- FeatureSqueezing (a preprocessor) computes in float64 on NumPy 2, which crashes any attack on a float32 network.
- AutoConjugateGradient and RescalingAutoConjugateGradient (lines 503 and 513) step along the raw direction for L∞ too,
  where its sign was meant, and hardly move.
- Two threads that attack one classifier with gradient attacks crash inside torch, bare as wrapped; give each its own.
- ZooAttack with `batch_size` above 1 fails when it begins its fine tuning (`zoo.py`, line 413).
- ShadowAttack becomes a targeted one for good once it is given labels (`shadow_attack.py`, line 136).
- AutoAttack with `parallel_pool_size` takes the classifier's optimizer away (`auto_attack.py`, lines 204 and 261); not so
  wrapped.
- `attack.eps = ...` does not reach ProjectedGradientDescent's inner attack (`set_params` does); through the wrapper it
  does.
- AdversarialTrainerAWPPyTorch hands its attack images that are preprocessed already when it validates; with a classifier
  that preprocesses, they lie outside its `clip_values`, and the wrapper says so.

In Foolbox 3.3.4:

- NewtonFoolAttack gives NaN where a gradient vanishes, and counts it as a success; wrapped, such images stay clean and do
  not count (unless nothing is salient).
- L0 attacks cannot be cut to a budget (`NotImplementedError`), and PointwiseAttack has no distance: use `epsilons=None`.
- HopSkipJumpAttack clips to [0, 1] whatever the model's bounds are.
- Attacks that start from afar fail as a whole where no starting point is found for one image. With a map fewer starts are
  adversarial: give an `init_attack` (InversionAttack finds one for most images) or `starting_points`.
"""


def page() -> str:
    """The page's text."""
    lines = [HEAD, "## torchattacks 3.5", "", "| Attack | Projected at | Batch | Remark |", "|---|---|---|---|"]
    for name, entry in TORCHATTACKS.specs.items():
        batch = "one image" if entry.alone else "selects" if entry.selects else ""
        lines.append(f"| {name} | {entry.mechanism.value} | {batch} | {entry.reason} |")
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
    return "\n".join(lines) + "\n" + _art() + _foolbox() + _functions() + TAIL


def _art() -> str:
    at_once = {"all": "all", "batch": "`batch_size`", "one": "one"}
    rows = [
        f"| {name} | {entry.mechanism.value} | {'yes' if entry.native else ''} | {at_once[entry.at_once]} | "
        f"{entry.reason} |\n"
        for name, entry in ART.specs.items()
    ]
    return ART_HEAD + "".join(rows) + ART_REFUSED + _reasons(ART.refused)


def _foolbox() -> str:
    rows = [f"| {name} | {entry.reason} |\n" for name, entry in FOOLBOX.specs.items()]
    return FOOLBOX_HEAD + "".join(rows) + FOOLBOX_REFUSED + _reasons(FOOLBOX.refused)


def _functions() -> str:
    text = FUNCTIONS_HEAD
    for library, title in LIBRARIES.items():
        text += f"\n### {title}\n\n| Attack | Batch | Remark |\n|---|---|---|\n"
        for name in dict.fromkeys(row.name for row in TABLE if row.library == library):
            rows = [row for row in TABLE if (row.library, row.name) == (library, name)]
            alone = "one image" if any(row.alone for row in rows) else ""
            remarks = {row.remark or row.arguments.get("backend", "") for row in rows} - {""}
            text += f"| {name} | {alone} | {', '.join(sorted(remarks))} |\n"
        text += FUNCTIONS_OUTSIDE + _reasons(OUTSIDE[library]) if library in OUTSIDE else ""
    return text


def _reasons(refused: Mapping[str, str]) -> str:
    return "".join(f"| {name} | {reason} |\n" for name, reason in refused.items())


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
