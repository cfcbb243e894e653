"""What one finding says about the other balls."""

import pytest
import torch

from sip_plugin.evaluation.codes import ASSUMED, CARRIED, MISCLASSIFIED, ROBUST
from sip_plugin.evaluation.findings import PENDING, Findings

RADII = (1.0, 2.0, 4.0)
INF = float("inf")


@pytest.fixture
def findings():
    """Four images, the last of them misclassified; examples are kept."""
    return Findings(RADII, torch.tensor([True, True, True, False]), torch.zeros(4, 1, 1, 1))


def record(findings, ball, attack, *norms):
    rows = torch.arange(len(norms))
    examples = torch.tensor(norms).view(-1, 1, 1, 1)
    findings.record(ball, attack, rows, torch.tensor(norms, dtype=torch.float64), examples)


def test_an_example_counts_in_every_ball_that_holds_it(findings):
    record(findings, 1, 5, 1.5, 0.5, 3.0)
    assert findings.outcome.tolist() == [
        [PENDING, CARRIED, PENDING, MISCLASSIFIED],
        [5, 5, PENDING, MISCLASSIFIED],
        [CARRIED, CARRIED, CARRIED, MISCLASSIFIED],
    ]
    assert findings.pending(0).tolist() == [0, 2]
    assert findings.smallest_norm.tolist() == [1.5, 0.5, 3.0, 0.0]


def test_the_smallest_example_is_kept_whoever_found_it(findings):
    record(findings, 2, 0, 4.0, 3.0, 3.0)
    record(findings, 1, 1, 2.0, INF, 5.0)
    assert findings.smallest_norm.tolist() == [2.0, 3.0, 3.0, 0.0]
    assert findings.smallest_by.tolist() == [1, 0, 0, -1]
    assert findings.examples.flatten().tolist() == [2.0, 3.0, 3.0, 0.0]
    clean = torch.full((4, 1, 1, 1), -1.0)
    assert findings.adversarial(clean)[2.0].flatten().tolist() == [2.0, -1.0, -1.0, -1.0]
    assert findings.adversarial(clean)[4.0].flatten().tolist() == [2.0, 3.0, 3.0, -1.0]


def test_without_images_no_examples_are_kept():
    findings = Findings(RADII, torch.tensor([True]))
    record(findings, 0, 0, 1.0)
    assert findings.adversarial(torch.zeros(1, 1, 1, 1)) is None


def test_what_is_left_of_a_ball_is_robust_and_assumed_so_in_smaller_ones_only_if_asked(findings):
    record(findings, 2, 0, 4.0, 0.5, INF)
    findings.close(2, assume=True)
    assert findings.outcome.tolist() == [
        [PENDING, CARRIED, ASSUMED, MISCLASSIFIED],
        [PENDING, CARRIED, ASSUMED, MISCLASSIFIED],
        [0, 0, ROBUST, MISCLASSIFIED],
    ]
    findings.close(0, assume=False)
    assert findings.outcome[0].tolist() == [ROBUST, CARRIED, ASSUMED, MISCLASSIFIED]


def test_an_example_overrules_survival_and_the_contradiction_is_counted(findings):
    findings.close(0, assume=False)
    findings.close(1, assume=False)
    record(findings, 2, 3, 0.5, 1.5, 3.0)
    assert findings.outcome.tolist() == [
        [CARRIED, ROBUST, ROBUST, MISCLASSIFIED],
        [CARRIED, CARRIED, ROBUST, MISCLASSIFIED],
        [3, 3, 3, MISCLASSIFIED],
    ]
    assert findings.contradicted == [1, 2, 0]


def test_an_example_overrules_an_assumption_without_contradiction(findings):
    findings.close(2, assume=True)
    findings.outcome[2] = torch.tensor([0, 0, 0, MISCLASSIFIED])
    record(findings, 0, 1, 0.5, INF, INF)
    assert findings.outcome[0].tolist() == [1, ASSUMED, ASSUMED, MISCLASSIFIED]
    assert findings.contradicted == [0, 0, 0]


def test_broken_by_is_the_attack_of_the_smallest_broken_ball(findings):
    record(findings, 2, 0, 4.0, 4.0, 3.0)
    record(findings, 1, 1, 2.0, 0.9, INF)
    findings.record(0, 2, torch.tensor([0]), torch.tensor([INF], dtype=torch.float64))
    assert findings.outcome[:, 0].tolist() == [PENDING, 1, 0]
    assert findings.outcome[:, 1].tolist() == [CARRIED, 1, 0]
    assert findings.broken_by().tolist() == [1, 1, 0, -1]


def test_a_ball_that_an_attack_broke_keeps_its_attack_though_another_finds_a_smaller_example(findings):
    record(findings, 1, 0, 2.0)
    record(findings, 0, 1, 1.5)  # a minimum-norm attack, whose example is too large for the ball it ran at
    assert findings.outcome[:, 0].tolist() == [PENDING, 0, CARRIED]
    assert findings.broken_by()[0] == 0
    assert findings.smallest_norm[0] == 1.5


def test_an_example_outside_all_balls_breaks_nothing(findings):
    record(findings, 0, 0, 9.0)
    assert findings.broken_by()[0] == -1
    assert findings.smallest_norm[0] == 9.0
    assert findings.pending(0).tolist() == [0, 1, 2]
