"""The example of human salience, on drawn birds and on somebody's archive."""

from tests.examples.test_examples import example
from tests.salience.annotations.archive import Archive


def test_on_drawn_birds(capsys):
    results = example("human_salience").main([])
    assert results["clean"] > 0.85
    assert results["robust"] > 0.5
    printed = capsys.readouterr().out
    assert "40% of the last batch salient" in printed
    assert "SIP-H on 60 test images" in printed


def test_a_resnet_on_an_archive_that_is_there(tmp_path, capsys):
    archive = Archive(tmp_path)
    options = ["--network", "resnet18", "--epochs", "1", "--steps", "1", "--batch-size", "4", "--workers", "1"]
    results = example("human_salience").main(["--root", str(archive.root), *options])
    assert set(results) == {"clean", "robust"}
    assert "SIP-H on 4 test images" in capsys.readouterr().out
