"""The example of a method of one's own runs, and trains robust networks."""

from tests.examples.test_examples import shortened


def test_own_method(capsys, monkeypatch):
    results = shortened("own_method", monkeypatch).main()
    assert set(results) == {"logit pairing", "SIP logit pairing"}
    for clean, robust in results.values():
        assert clean > 0.85
        assert robust > 0.5
    printed = capsys.readouterr().out
    assert "adversarial_accuracy" in printed
    assert "'salient'" in printed
