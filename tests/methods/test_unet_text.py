"""The control that reads reports: the supervised network, and the reports."""

import torch
from tiny_runs import make, make_batch, make_semi, train, with_other_texts


def test_without_reports_it_is_the_supervised_network():
    control, supervised = make("unet-text", report=False), make("supervised", report=False)
    batch = make_semi(report=False)
    assert train(control, batch, 2) == train(supervised, batch, 2)
    assert not control.reads_text
    assert control.state_dict().keys() == supervised.state_dict().keys()


def test_without_the_norm_it_starts_as_the_supervised_network():
    query = make_batch(("q0", "q1"), masked=False)
    normed, plain, supervised = make("unet-text"), make("unet-text", {"report_norm": False}), make("supervised")
    for method in (normed, plain):
        method.load_state_dict(supervised.state_dict(), strict=False)
    said = supervised.eval().predict(query).probability
    assert torch.equal(plain.eval().predict(query).probability, said)
    assert not torch.allclose(normed.eval().predict(query).probability, said, atol=1e-3)


def test_it_reads_reports_and_no_rationale():
    method = make("unet-text")
    assert method.reads_text
    train(method, make_semi(), 4)
    query = make_batch(("q0", "q1"), masked=False)
    other = with_other_texts(query)
    probability = method.predict(query).probability
    rationales = ("cot", "cot_known", "mask_cot", "mask_cot_known")
    other_rationales = query.__class__(**{**vars(query), **{k: getattr(other, k) for k in rationales}})
    assert torch.equal(method.predict(other_rationales).probability, probability)
    assert not torch.equal(method.predict(other).probability, probability)
