"""The example of a method of one's own runs, and trains robust networks."""

from tests.examples.test_examples import example


def test_own_method(capsys):
    results = example("own_method").main()
    assert set(results) == {"logit pairing", "SIP logit pairing"}
    for clean, robust in results.values():
        assert clean > 0.85
        assert robust > 0.5
    printed = capsys.readouterr().out
    assert "adversarial_accuracy" in printed
    assert "'salient'" in printed
