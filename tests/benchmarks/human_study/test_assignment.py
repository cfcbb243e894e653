from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.human_study.assignment import IMAGES, Trial, assign
from tests.benchmarks.human_study.answers import LEVELS, pool


def spread(counts, keys):
    return max(counts[key] for key in keys) - min(counts[key] for key in keys)


def test_two_thousand_participants_of_the_papers_pool():
    manifest = pool(200)
    of_class = {image["id"]: image["class"] for image in manifest["images"]}
    shown: dict[str, Counter] = {name: Counter() for name in ("", *manifest["versions"])}
    versions, follows, places = Counter(), Counter(), Counter()
    for participant in range(2_000):
        assignment = assign(manifest, 17, participant)
        images = [trial.image for trial in assignment.trials]
        assert len(set(assignment.trials)) == 50  # ten images, each at five levels
        assert {image: images.count(image) for image in images} == dict.fromkeys(images, len(LEVELS))
        assert len({of_class[image] for image in images}) == IMAGES
        assert all(one != next_ for one, next_ in pairwise(images))
        versions[assignment.version] += 1
        for name in ("", assignment.version):
            shown[name].update(assignment.trials)
            shown[name].update(set(images))
            shown[name].update(of_class[image] for image in set(images))
        follows.update((one.level, next_.level) for one, next_ in pairwise(assignment.trials))
        places.update((trial.level, place) for place, trial in enumerate(assignment.trials))
        if participant % 199 == 0 or participant == 1_999:  # not only at the end, where a cycle may be complete
            for counts in shown.values():
                assert spread(counts, range(200)) <= 1
                assert spread(counts, of_class) <= 1
            assert spread(versions, manifest["versions"]) <= 1
    trials = [(image, level) for image in of_class for level in LEVELS]
    counts = Counter({(trial.image, trial.level): n for trial, n in shown[""].items() if hasattr(trial, "level")})
    assert spread(counts, trials) <= 1
    # Random orders: each level is at each place, and after each level, about as often as chance has it (five σ).
    assert all(abs(n - 400) < 90 for n in places.values())
    assert all(abs(n / sum(follows.values()) - 1 / 25) < 0.011 for n in follows.values())


@pytest.mark.parametrize(("classes", "each", "versions"), [(10, 5, 1), (10, 4, 2), (25, 4, 2), (17, 3, 3)])
def test_other_pools_are_balanced_too(classes, each, versions):
    manifest = pool(classes, each, [f"network-{v}" for v in range(versions)])
    images, seen = Counter(), set()
    for participant in range(2 * classes * each * versions):
        assignment = assign(manifest, 0, participant)
        chosen = {trial.image for trial in assignment.trials}
        assert len({image[:3] for image in chosen}) == IMAGES
        images.update(chosen)
        seen.update((assignment.version, image) for image in chosen)
        assert spread(images, [image["id"] for image in manifest["images"]]) <= 1
    assert len(seen) == classes * each * versions


def test_is_a_function_of_seed_and_participant():
    manifest = pool(20)
    assert assign(manifest, 1, 7) == assign(manifest, 1, 7)
    assert len({assign(manifest, seed, k).trials for seed in (1, 2) for k in range(50)}) == 100
    # Of this very one: a study that goes on under another version of Python or of this file must not change under way.
    first = assign(manifest, 1, 0)
    assert (first.version, first.trials[0], first.trials[49]) == (
        "densenet121",
        Trial("009-0002", 0),
        Trial("011-0002", 1),
    )


def test_refuses_a_pool_that_cannot_be_balanced():
    uneven = pool(20)
    uneven["images"].pop()
    for manifest in (pool(9), uneven):
        with pytest.raises(ValueError, match="10 classes, all with the same number"):
            assign(manifest, 0, 0)
