"""What the projected attacks must compute, written as plainly as possible.

Each loop projects the iterate before each gradient and masks the gradient (semantics of SIP-AT's δ' = δ·(1 − M) at every
step), and draws random numbers in the order of the attack of torchattacks.
"""

import torch
import torch.nn.functional as F


def gradient(network, point, y, salience, transform=lambda z: z):
    """The clean values selected into the iterate, and the masked gradient there."""
    point = point.requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(network(transform(point)), y), point)
    return torch.where(salience, torch.zeros_like(g), g)


def linf(x, point, eps):
    return torch.clamp(x + torch.clamp(point - x, min=-eps, max=eps), min=0, max=1).detach()


def uniform_start(x, eps):
    return torch.clamp(x + torch.empty_like(x).uniform_(-eps, eps), min=0, max=1)


def fgsm(a, network, x, y, salience):
    g = gradient(network, x.clone(), y, salience)
    return torch.where(salience, x, torch.clamp(x + a.eps * g.sign(), min=0, max=1))


def bim(a, network, x, y, salience):
    point = x.clone()
    for _ in range(a.steps):
        point = torch.where(salience, x, point)
        moved = point + a.alpha * gradient(network, point.clone(), y, salience).sign()
        lower, upper = torch.clamp(x - a.eps, min=0), x + a.eps
        point = torch.clamp(torch.minimum(torch.maximum(moved, lower), upper), max=1)
    return torch.where(salience, x, point)


def pgd(a, network, x, y, salience):
    point = uniform_start(x, a.eps)
    for _ in range(a.steps):
        point = torch.where(salience, x, point)
        g = gradient(network, point.clone(), y, salience)
        point = linf(x, point + a.alpha * g.sign(), a.eps)
    return torch.where(salience, x, point)


def pgdl2(a, network, x, y, salience):
    n = len(x)
    delta = torch.empty_like(x).normal_()
    norm = delta.view(n, -1).norm(p=2, dim=1).view(n, 1, 1, 1)
    delta *= torch.zeros_like(norm).uniform_(0, 1) / norm * a.eps
    point = torch.clamp(x + delta, min=0, max=1)
    for _ in range(a.steps):
        point = torch.where(salience, x, point)
        g = gradient(network, point.clone(), y, salience)
        g = g / (torch.norm(g.view(n, -1), p=2, dim=1) + a.eps_for_division).view(n, 1, 1, 1)
        delta = point + a.alpha * g - x
        size = torch.norm(delta.view(n, -1), p=2, dim=1)
        delta = delta * torch.min(a.eps / size, torch.ones_like(size)).view(-1, 1, 1, 1)
        point = torch.clamp(x + delta, min=0, max=1)
    return torch.where(salience, x, point)


def momentum_loop(a, network, x, y, salience, start, transform=lambda z: z, smooth=lambda g: g):
    """MI-, DI- and TI-FGSM are one loop, with a transform before the network and one after the gradient."""
    momentum, point = torch.zeros_like(x), start
    for _ in range(a.steps):
        point = torch.where(salience, x, point)
        g = smooth(gradient(network, point.clone(), y, salience, transform))
        g = g / torch.mean(torch.abs(g), dim=(1, 2, 3), keepdim=True) + momentum * a.decay
        momentum = g
        point = linf(x, point + a.alpha * g.sign(), a.eps)
    return torch.where(salience, x, point)


def mifgsm(a, network, x, y, salience):
    return momentum_loop(a, network, x, y, salience, x.clone())


def difgsm(a, network, x, y, salience):
    return momentum_loop(a, network, x, y, salience, uniform_start(x, a.eps), a.input_diversity)


def tifgsm(a, network, x, y, salience):
    def smooth(g):
        return F.conv2d(g, a.stacked_kernel, stride=1, padding="same", groups=3)

    return momentum_loop(a, network, x, y, salience, uniform_start(x, a.eps), a.input_diversity, smooth)


LOOPS = {f.__name__.upper(): f for f in (fgsm, bim, pgd, pgdl2, mifgsm, difgsm, tifgsm)}
