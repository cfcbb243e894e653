"""docs/howto/maps.md: its snippets run as they stand, and every source in them gives maps."""

import ast
import re

import torch

from sip_plugin.constraint import prepare_mask
from sip_plugin.mask_source import compute_mask
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "howto" / "maps.md").read_text(encoding="utf-8")


def shares_of(snippets, known, images="images"):
    """The share of salient elements by each ``mask_fn`` of the snippets, which are run one after the other."""
    shares = []
    for snippet in snippets:
        for statement in ast.parse(snippet).body:
            exec(compile(ast.Module([statement], []), "the page", "exec"), known)
            if isinstance(statement, ast.Assign) and statement.targets[0].id == "mask_fn":
                batch = known[images]
                salience = prepare_mask(compute_mask(known["mask_fn"], batch, known["labels"]), batch)
                shares.append(salience.float().mean().item())
        assert known["salience"].dtype == torch.bool
        assert known["salience"].shape == known["images"].shape
    return shares


def test_every_source_in_the_snippets_gives_maps(network, images, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gradient, cam, *transformers, own, comparison = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    known = {"teacher": network, "images": images, "labels": labels}
    shares = shares_of([gradient, cam, own], known)
    torch.manual_seed(0)
    known["torch"] = torch
    monkeypatch.setattr(torch.nn.init, "zeros_", lambda tensor: torch.nn.init.normal_(tensor))  # of a ViT's last layer
    shares += shares_of(transformers, known, "larger")
    assert len(shares) == PAGE.count("mask_fn = ") == 10
    assert len(set(shares)) == 9  # a Swin's stage with its axes found, and said
    assert all(0 < share < 0.8 for share in shares)
    exec(comparison, known)
    assert (tmp_path / "figure4.png").read_bytes().startswith(b"\x89PNG")
