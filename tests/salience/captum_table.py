"""Captum's attribution methods: one row each, over which every property runs; docs/howto/captum.md holds the same rows."""

from collections.abc import Callable
from dataclasses import dataclass, field

import captum.attr as captum
import torch
from captum._utils.models.linear_model import SkLearnLasso
from torch import nn

ROWS, COLUMNS = torch.meshgrid(torch.arange(16) // 8, torch.arange(16) // 8, indexing="ij")
QUARTERS = (2 * ROWS + COLUMNS)[None, None]  # a feature mask: the four quarters of an image
DARK = {"baselines": lambda images: images * 0.1}
SOME = {"baselines": torch.full((2, 3, 16, 16), 0.3) + torch.arange(2)[:, None, None, None] / 5}


class WithoutFlatten(nn.Module):
    """The small network, flattening in its own forward: LRP has no rule for nn.Flatten."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.features = network[:8]
        self.head = network[9]

    def forward(self, images):
        return self.head(self.features(images).flatten(1))


@dataclass(frozen=True)
class Row:
    """A method: how it is built on a network, and what its ``attribute`` is given."""

    name: str
    build: Callable[[nn.Module], captum.Attribution]
    options: dict = field(default_factory=dict)
    per_batch: dict = field(default_factory=dict)
    network: Callable[[nn.Sequential], nn.Module] = lambda network: network
    takes_target: bool = True
    random: bool = False
    layer: bool = False  # attributes to a layer, so that maps are of pixels
    windows: int = 0  # of Occlusion

    def __str__(self) -> str:
        return self.name


def of(kind, **row):
    """A method built on the network alone."""
    return Row(kind.__name__, kind, **row)


def of_layer(kind, **row):
    """A method built on the network and the output of its second convolution stage."""
    layer = kind.__name__.startswith("Layer") or kind is captum.InternalInfluence
    return Row(kind.__name__, lambda net: kind(net, stage(net)), layer=layer, **row)


def stage(network):
    return network.features[4] if isinstance(network, WithoutFlatten) else network[4]


def around(kind, **row):
    return Row(f"NoiseTunnel({kind.__name__})", lambda net: captum.NoiseTunnel(kind(net)), random=True, **row)


NOT_WORKING = {
    "LayerFeaturePermutation": "Captum 0.9 refuses one target per image",
    "LimeBase": "the parts that Lime and KernelShap are made of",
    "DataLoaderAttribution": "takes a data loader",
    "LLMAttribution": "of language models",
    "LLMGradientAttribution": "of language models",
    "RemoteLLMAttribution": "of language models",
}
BASES = {"Attribution", "GradientAttribution", "PerturbationAttribution", "LayerAttribution", "NeuronAttribution"}
NEURON = {"options": {"neuron_selector": (3, 2, 2)}, "takes_target": False}

WORKING = (
    of(captum.Saliency),
    of(captum.InputXGradient),
    of(captum.IntegratedGradients, options={"n_steps": 4, "method": "riemann_right"}, per_batch=DARK),
    of(captum.DeepLift),
    of(captum.DeepLiftShap, options=SOME),
    of(captum.GradientShap, options={"n_samples": 2, "stdevs": 0.1, **SOME}, random=True),
    of(captum.GuidedBackprop),
    of(captum.Deconvolution),
    of_layer(captum.GuidedGradCam),
    of(captum.LRP, network=WithoutFlatten),
    of(
        captum.Occlusion,
        options={"sliding_window_shapes": (3, 6, 6), "strides": (3, 5, 5), "baselines": 0.5},
        windows=9,
    ),
    of(captum.FeatureAblation, options={"feature_mask": QUARTERS}),
    of(captum.FeaturePermutation, options={"feature_mask": QUARTERS[0].expand(3, 16, 16)}, random=True),
    of(captum.ShapleyValueSampling, options={"feature_mask": QUARTERS, "n_samples": 2}, random=True),
    of(captum.ShapleyValues, options={"feature_mask": QUARTERS}),
    Row(
        "Lime",
        lambda net: captum.Lime(net, SkLearnLasso(alpha=1e-3)),
        options={"feature_mask": QUARTERS, "n_samples": 8},
        random=True,
    ),
    of(captum.KernelShap, options={"feature_mask": QUARTERS, "n_samples": 8}, random=True),
    around(captum.Saliency, options={"nt_samples": 3, "stdevs": 0.05}),
    around(captum.IntegratedGradients, options={"nt_samples": 2, "stdevs": 0.05, "n_steps": 3}),
    around(captum.DeepLift, options={"nt_samples": 2, "stdevs": 0.05, "nt_type": "smoothgrad_sq"}),
    around(captum.GuidedBackprop, options={"nt_samples": 2, "stdevs": 0.05}),
    around(captum.Occlusion, options={"nt_samples": 2, "stdevs": 0.05, "sliding_window_shapes": (3, 8, 8)}, windows=81),
    of_layer(captum.LayerGradCam),
    of_layer(captum.LayerLRP, network=WithoutFlatten),
    of_layer(captum.LayerActivation, takes_target=False),
    of_layer(captum.LayerGradientXActivation),
    of_layer(captum.LayerConductance, options={"n_steps": 3}),
    of_layer(captum.InternalInfluence, options={"n_steps": 3}),
    of_layer(captum.LayerIntegratedGradients, options={"n_steps": 3}),
    of_layer(captum.LayerDeepLift),
    of_layer(captum.LayerDeepLiftShap, options=SOME),
    of_layer(captum.LayerGradientShap, options={"n_samples": 2, "stdevs": 0.1, **SOME}, random=True),
    of_layer(captum.LayerFeatureAblation, options={"layer_mask": QUARTERS[..., ::2, ::2]}),
    of_layer(captum.NeuronGradient, **NEURON),
    of_layer(captum.NeuronIntegratedGradients, options={"n_steps": 3, **NEURON["options"]}, takes_target=False),
    of_layer(captum.NeuronConductance, options={"n_steps": 3, **NEURON["options"]}),
    of_layer(captum.NeuronDeepLift, **NEURON),
    of_layer(captum.NeuronDeepLiftShap, options={**SOME, **NEURON["options"]}, takes_target=False),
    of_layer(captum.NeuronGradientShap, options={**SOME, **NEURON["options"]}, takes_target=False, random=True),
    of_layer(captum.NeuronGuidedBackprop, **NEURON),
    of_layer(captum.NeuronDeconvolution, **NEURON),
    of_layer(captum.NeuronFeatureAblation, options={"feature_mask": QUARTERS, **NEURON["options"]}, takes_target=False),
)
