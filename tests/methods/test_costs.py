import pytest
import torch
from tiny_runs import begin, make, make_semi

from cers.engine.costs import ImagePasses, peak_memory
from cers.methods.base import Progress
from cers.methods.registry import METHODS

# Of a batch of 4 + 4 images in the last stage: how many go through a network, as methods.md 1.5 counts forwards.
PASSES = {"supervised": 4, "unet-text": 4, "mean-teacher": 12, "cers": 8, "lefed": 24}


@pytest.mark.parametrize("name", list(METHODS))
def test_every_image_that_enters_a_network_is_counted(name):
    method = make(name)
    passes = ImagePasses(method)
    batch = make_semi(strong_views=method.strong_views)
    stage = method.stages()[-1]
    begin(method, stage.name, batch)
    assert passes.count == 0
    with passes.counting():
        for result in method.steps(batch, Progress(stage.name, 1, 2)):
            result.loss.backward()
    assert passes.count >= 4
    assert passes.count == PASSES.get(name, passes.count)
    before = passes.count
    method.predict(batch.labelled)
    assert passes.count == before


def test_memory_never_falls_and_sees_a_tensor():
    before = peak_memory()
    block = torch.ones(2**25)
    after = peak_memory()
    assert before is not None
    assert after is not None
    assert after >= before
    assert after >= block.nbytes
