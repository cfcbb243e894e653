"""What notebooks show of the package's objects as the last line of a cell: tables, pictures, and no tensors."""

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
pytest.importorskip("ipykernel", reason="needs ipykernel")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("captum", reason="needs Captum")

SETUP = """
from functools import partial
import torch
import torchattacks
from captum.attr import IntegratedGradients
from torch import nn
from torch.utils.data import TensorDataset
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.evaluation import RobustnessReport, evaluate_robustness
from sip_plugin.salience import (
    AttributionSalience, CAMSalience, GradientSalience, MaskStore, SalientDataset, compare_salience, plot_salience
)
from sip_plugin.salience.annotations import FolderMasks
from sip_plugin.training import PART

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
images = torch.rand(16, 3, 8, 8)
labels = network(images).argmax(1)
attack = torchattacks.PGD(network, steps=2)
source = GradientSalience(network)
maps = source(images)
dataset = TensorDataset(images, labels)
store = MaskStore.build("masks", dataset, source, progress=False)
trainer = AdversarialTrainer(network, PART(warmup=0.0), salience=maps)
trainer.set_epoch(0, 1)
trainer(images, labels)
report = evaluate_robustness(
    network, [(images, labels)], eps=(2 / 255,), attack=lambda model, eps: torchattacks.PGD(model, eps, steps=2),
    progress=False, return_adversarial=True,
)
comparison = RobustnessReport.compare({"one": report, "two": [report, report]})
None
"""

TABLES = ("report", "comparison", "compare_salience(source, maps, images)")
PICTURES = ("report.plot()", "comparison.plot()", "plot_salience(images, maps, max_images=1)")
OTHERS = (
    "SIPWrapper(attack, maps)",
    "SIPWrapper(attack, partial(torch.gt, images))",
    "SIPWrapper(attack, network)",
    "trainer",
    "trainer.metrics",
    "AdversarialTrainer(network, attack=SIPWrapper(attack, source))",
    "source",
    "CAMSalience(network, layer='0', reshape=lambda output: output)",
    "AttributionSalience(IntegratedGradients(network), baselines=images[:1], per_batch={'n_steps': len})",
    "store",
    "SalientDataset(dataset, store)",
    "SalientDataset(dataset, maps)",
    "FolderMasks([], 'masks')",
    "comparison.rows[1]",
    "comparison.rows[1].figures",
    "report.robust_accuracy",
    "report.per_class",
    "report.compare_images(report)",
    "report.settings",
)


def test_what_cells_show(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *TABLES, *PICTURES, *OTHERS)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {}
    for cell in notebook.cells[1:]:
        (result,) = (output for output in cell.outputs if output.output_type == "execute_result")
        shown[cell.source] = result.data
    for table in TABLES:
        assert {"text/markdown", "text/plain"} <= set(shown[table])
    assert "**" in shown["comparison"]["text/markdown"]
    for picture in PICTURES:
        assert "image/png" in shown[picture]
    for source, data in shown.items():
        text = data["text/plain"]
        assert len(text) < 800, source
        assert "tensor([" not in text, source
