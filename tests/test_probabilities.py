"""A network that ends in a softmax is judged by the logits behind its probabilities."""

from __future__ import annotations

import pytest
import torch
from models import as_trained, images
from planting import Bug, Patch, check_caught
from torch import nn

import onebyone as obo
from onebyone import sensing, verification
from onebyone.running import as_logits


def _networks() -> tuple[nn.Module, nn.Module]:
    """Logits that are far apart, and the same with a softmax behind."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    plain = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        layers[-1].weight *= 8  # type: ignore[operator]
    as_trained(plain)
    return plain, nn.Sequential(*layers, nn.Softmax(1)).eval()


def test_probabilities_become_logits_and_nothing_else_does() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64)
    given = logits.softmax(1)
    torch.testing.assert_close(as_logits(given).softmax(1), given)
    torch.testing.assert_close(as_logits(given), logits.log_softmax(1))
    for other in (
        logits,
        logits.sigmoid(),
        given[None],
        given[:, :1],
        2 * given,
        given - given.mean(),
    ):
        assert as_logits(other) is other
    assert as_logits(torch.tensor([[1.0, 0.0]])).isfinite().all()


def check_statistics() -> None:
    """Gradients are those of the network without the softmax."""
    plain, ended = _networks()
    x = images(16, 4, 8, 8).double()
    one, other = (obo.observe(model, x).layers for model in (plain, ended))
    assert one["0"].gradients.abs().max() > 0
    for name in ("0", "2", "4"):
        torch.testing.assert_close(other[name].gradients, one[name].gradients, rtol=1e-4, atol=1e-9)


def check_divergence() -> None:
    plain, ended = _networks()
    x = images(16, 4, 8, 8).double()
    lighter = [obo.rewrite(m, obo.plan(m, obo.observe(m, x), obo.Budget(macs=0.6)), x)
               for m in (plain, ended)]  # fmt: skip
    found = obo.verify(ended, lighter[1], x, latency=False)
    with torch.no_grad():
        p, q = ended(x), lighter[1](x)
    torch.testing.assert_close(found.kl, float((p * (p.log() - q.log())).sum(1).mean()))


def test_statistics_see_the_logits() -> None:
    check_statistics()


def test_the_divergence_is_that_of_the_probabilities() -> None:
    check_divergence()


BUGS = {
    "gradients of probabilities": Bug(
        lambda patch: patch.setattr(sensing, "as_logits", lambda y: y), check_statistics
    ),
    "softmax twice": Bug(
        lambda patch: patch.setattr(verification, "as_logits", lambda y: y), check_divergence
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch)
