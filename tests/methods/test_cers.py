"""CERS by its specification (methods.md, 10.10): what it counts, what may influence what, and what moves when."""

import copy
from dataclasses import asdict, fields, replace
from typing import Any, get_args

import pytest
import torch
from tiny_runs import COT, LABELLED, make, make_batch, make_semi, make_setup, noise, texts_of, train, with_other_texts
from torch import Tensor, nn
from torch.nn import functional as F

from cers.data.case import Batch, SemiBatch
from cers.errors import CersError
from cers.losses import dice_ce, sharpened_consistency, two_class_dice
from cers.methods.base import Evidence, Progress, Setup
from cers.methods.cers import CERS
from cers.methods.evidence import Retriever, Strategy
from cers.methods.outline import contradicted, outline
from cers.methods.reference_size import grown
from cers.methods.registry import create_method, method_settings
from cers.nets.encoder import PyramidEncoder
from cers.schedules import sigmoid_ramp


def cers(settings: dict[str, Any] | None = None, **setup: Any) -> CERS:
    method = make("cers", settings, **setup)
    assert isinstance(method, CERS)
    return method


def filled(settings: dict[str, Any] | None = None, **setup: Any) -> CERS:
    """A fresh method with its pool filled."""
    method = cers(settings, **setup)
    method.start_stage("semi", [make_batch(method.pool.ids, masked=True)])
    return method.eval()


@pytest.fixture(scope="module")
def trained() -> CERS:
    """A few steps of both stages, two references an image. Not to be changed: take a deepcopy."""
    method = cers({"k": 2})
    train(method, make_semi(), 6)
    return method


def query() -> Batch:
    return make_batch(("q0", "q1", "q2", "q3"), masked=False)


def found_ids(evidence: Evidence) -> list[list[str]]:
    return [
        [evidence.pool_ids[i] for i, ok in zip(row, valid, strict=True) if ok]
        for row, valid in zip(evidence.index.tolist(), evidence.valid.tolist(), strict=True)
    ]


def step(method: CERS, batch: SemiBatch, stage: str = "semi", at: int = 5):
    (result,) = method.steps(batch, Progress(stage, at, 10))
    return result


SPACE = ["alignment.cot_projection.weight", "alignment.image_projection.weight", "alignment.log_scale"]


def branches(method: CERS, batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
    prediction = method.predict(batch, **options)
    return prediction.branches["retrieval"], prediction.branches["base"]


@pytest.mark.parametrize(
    # torchvision's Swin V2, by which the specification counts, has 4,416 key biases that timm leaves out.
    ("encoder", "expected"),
    [("convnext_tiny", 48_728_354), ("swinv2_tiny_window8_256", 48_490_796 - 4_416)],
)
def test_parameter_counts_are_those_of_the_specification(encoder, expected):
    """Which counts what runs at prediction: neither the two projections of the alignment nor its temperature."""
    with torch.device("meta"):
        setup = Setup(lambda: PyramidEncoder(encoder), [("a", None, None)], report_width=768, cot_width=768)
        method = CERS(setup, method_settings("cers", {}))
    counts = {child: sum(p.numel() for p in module.parameters()) for child, module in method.named_children()}
    assert counts.pop("alignment") == 2 * 768 * 512 + 1
    assert sum(counts.values()) == expected
    assert sum(p.numel() for p in method.parameters()) == expected + 2 * 768 * 512 + 1


class BackwardsRetriever(Retriever):
    """The same references in the opposite order."""

    def __call__(self, *given: Any, **options: Any) -> Evidence:
        found = super().__call__(*given, **options)
        return replace(found, index=found.index.flip(1), valid=found.valid.flip(1))


def test_the_order_of_references_does_not_matter(trained):
    method = copy.deepcopy(trained)
    expected = method.predict(query())
    method.retriever = BackwardsRetriever(**asdict(method.retriever))
    found = method.predict(query())
    assert torch.equal(found.evidence.index, expected.evidence.index.flip(1))
    for branch, probability in found.branches.items():
        assert torch.allclose(probability, expected.branches[branch], atol=1e-6)


def test_reports_say_nothing_at_the_start_and_something_later(trained):
    fresh = filled({"retrieval": "image"})
    other = replace(query(), **texts_of(query().ids, report=True, cot=False, masked=False, salt="other "))
    for now, before in zip(branches(fresh, other), branches(fresh, query()), strict=True):
        assert torch.equal(now, before)
    for now, before in zip(branches(trained, other), branches(trained, query()), strict=True):
        assert not torch.equal(now[:3], before[:3])


def test_a_labelled_image_never_retrieves_itself_but_may_retrieve_its_double():
    method = cers({"retrieval": "image", "k": 5}, labelled=("l0", "l1", "l2", "m0"))
    batch = make_batch(("l0", "l1", "l2", "m0"), masked=True)
    batch = replace(batch, images=torch.cat([batch.images[:3], batch.images[:1]]))
    method.start_stage("semi", [batch])
    found = found_ids(method.eval().predict(batch).evidence)
    assert all(id_ not in ids and len(ids) == 3 for id_, ids in zip(batch.ids, found, strict=True))
    assert found[0][0] == "m0"
    assert found[3][0] == "l0"


@pytest.mark.parametrize(("exclude", "expected"), [(True, {"l2", "l3"}), (False, {"l1", "l2", "l3"})])
def test_a_patients_other_images_are_left_out(exclude, expected):
    setup = Setup(
        lambda: PyramidEncoder("test_convnext2", drop_path=0.0),
        [("l0", "p", None), ("l1", "p", None), ("l2", "r", None), ("l3", None, None)],
        image_size=32,
    )
    method = create_method("cers", {"exclude_group": exclude}, setup).eval()
    batch = replace(make_batch(LABELLED, masked=True, report=False, cot=False), groups=("p", "p", "r", None))
    method.start_stage("semi", [batch])
    assert set(found_ids(method.predict(batch).evidence)[0]) == expected


def test_references_reach_the_retrieval_branch_alone(trained):
    method = copy.deepcopy(trained)
    retrieval, base = branches(method, query())
    method.pool.tokens.copy_(noise("others", *method.pool.tokens.shape))
    now_retrieval, now_base = branches(method, query())
    assert torch.equal(now_base, base)
    assert not torch.equal(now_retrieval, retrieval)


def test_no_gradient_reaches_the_pool(trained):
    method = copy.deepcopy(trained).train()
    step(method, make_semi()).loss.backward()
    method.after_step()
    assert all(not b.requires_grad and b.grad is None and b.is_leaf for b in method.pool.buffers())


def expected_parts(method: CERS, batch: SemiBatch) -> tuple[Tensor, Tensor]:
    """Supervised and consistency loss from the probabilities of the two branches (Eq. 1, 6)."""
    retrieval, base = (p.double().logit().float() for p in branches(method, batch.unlabelled))
    supervised = sum(
        dice_ce(p.double().logit().float(), batch.labelled.masks) for p in branches(method, batch.labelled)
    )
    return supervised, sharpened_consistency(retrieval, base, method.settings.temperature)


@pytest.mark.parametrize("at", [0, 5, 9])
def test_the_total_is_supervised_plus_ramped_consistency(trained, at):
    method = copy.deepcopy(trained)
    supervised, consistency = expected_parts(method, make_semi())
    result = step(method, make_semi(), at=at)
    assert torch.allclose(result.logs["segmentation"], supervised, rtol=1e-4)
    assert torch.allclose(result.logs["consistency"], consistency, rtol=1e-4)
    assert torch.allclose(result.loss, supervised + sigmoid_ramp(at / 10) * consistency, rtol=1e-4)


def test_consistency_has_its_weight_and_its_place(trained):
    batch, other = make_semi(), make_semi(labelled=("l3", "l2", "l1", "l0"))
    other = SemiBatch(replace(batch.labelled, images=-other.labelled.images), batch.unlabelled)
    found = {}
    for where in ("unlabelled", "all"):
        method = copy.deepcopy(trained)
        method.settings = method.settings.model_copy(update={"consistency_on": where, "consistency": 7.0})
        result = step(method, batch)
        weighted = result.logs["segmentation"] + 7 * sigmoid_ramp(0.5) * result.logs["consistency"]
        assert torch.allclose(result.loss, weighted)
        found[where] = (result.logs["consistency"], step(method, other).logs["consistency"])
    assert torch.allclose(*found["unlabelled"])
    assert not torch.allclose(*found["all"])


def test_consistency_does_not_depend_on_the_size_of_the_batch(trained):
    method, batch = copy.deepcopy(trained), make_semi()
    double = make_semi(unlabelled=batch.unlabelled.ids * 2)
    assert len(double.unlabelled) == 8
    assert torch.allclose(step(method, double).logs["consistency"], step(method, batch).logs["consistency"])


def test_a_step_without_unlabelled_images_is_supervised(trained):
    method, batch = copy.deepcopy(trained), make_semi()
    result = step(method, SemiBatch(batch.labelled))
    assert set(result.logs) == {"segmentation"}
    assert torch.allclose(result.loss, expected_parts(method, batch)[0], rtol=1e-4)


def untrained(method: CERS, stage: str, steps: int) -> list[str]:
    """Parameters that got no gradient, or nothing but zeros, in the last of some steps of gradient descent."""
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    method.train()
    for at in range(steps):
        optimiser.zero_grad()
        step(method, make_semi(), stage, at).loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimiser.step()
        method.after_step()
    return [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]


def test_one_warm_up_step_trains_everything_but_what_waits_for_references():
    """Both projections and the temperature included, which the authors' program forgets.

    Inside the report attention only the gate can move at first, as it is closed; the rest follows with the next step.
    Of the fusion only the last convolution works without references.
    """
    method = cers()
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    waiting = untrained(method, "warm-up", 1)
    assert {n.split(".")[0] for n in waiting} == {"fusion", "report_attention"}
    assert not any(n.endswith((".gamma", ".norm.weight", ".norm.bias")) for n in waiting if "report_attention" in n)
    moved = {n for n, p in method.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert set(SPACE) <= moved
    assert {n.split(".")[0] for n in untrained(cers(), "warm-up", 2)} == {"fusion"}


class Upper(nn.Module):
    """Stands for the upper layers of a rationale encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COT, COT)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        words = (~padding).sum(dim=1, keepdim=True).clamp(min=1)
        return self.layer(tokens).masked_fill(padding[..., None], 0.0).sum(dim=1) / words


def with_states(batch: Batch) -> Batch:
    tokens = torch.stack([noise(f"states {id_}", 4, COT) for id_ in batch.ids])
    padding = torch.zeros(len(batch), 4, dtype=torch.bool)
    padding[:, 3:] = True
    states = {"cot_tokens": tokens, "cot_padding": padding}
    return replace(batch, **states, mask_cot_tokens=tokens + 1, mask_cot_padding=padding)


def test_upper_layers_of_the_rationale_encoder_train_in_the_warm_up_only():
    setup = replace(make_setup(), cot_upper=Upper)
    method = create_method("cers", {}, setup)
    batch = make_semi()
    batch = SemiBatch(with_states(batch.labelled), with_states(batch.unlabelled))
    step(method, batch, "warm-up").loss.backward()
    assert all(p.grad.any() for p in method.alignment.cot_upper.parameters())
    method.zero_grad()
    method.start_stage("semi", [batch.labelled])
    step(method.train(), batch).loss.backward()
    assert all(p.grad is None for p in method.alignment.cot_upper.parameters())
    known = batch.labelled.cot_known
    with torch.no_grad():
        informed = method.alignment.cot_upper(batch.labelled.mask_cot_tokens, batch.labelled.mask_cot_padding)
        expected = F.normalize(method.alignment.cot_projection(informed), dim=1)
    assert torch.allclose(method.pool.cot[known].float(), expected[known], atol=1e-3)


def test_a_mirrored_view_is_found_by_its_own_words_at_rest():
    method = create_method("cers", {}, replace(make_setup(), cot_upper=Upper))
    method.start_stage("semi", [with_states(make_semi().labelled)])
    plain = with_states(make_semi().unlabelled)
    flip = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(len(plain), 1, 1)
    mirrored = replace(plain, geometry=flip, cot_tokens=-plain.cot_tokens)
    first, second = method.alignment.mask_free(plain), method.alignment.mask_free(mirrored)
    method.alignment.forget()
    assert not torch.allclose(first, second, atol=1e-2)
    assert torch.equal(method.alignment.mask_free(mirrored), second)  # whichever came first
    assert torch.equal(method.alignment.mask_free(plain), first)


def test_averaged_weights_of_a_validation_are_not_remembered_nor_the_others_used_in_it():
    method = create_method("cers", {}, replace(make_setup(), cot_upper=Upper))
    batch = with_states(make_semi().unlabelled)
    live = method.train().alignment.mask_free(batch)
    kept = copy.deepcopy(method.alignment.state_dict())
    with torch.no_grad():
        for weight in method.alignment.parameters():
            weight.mul_(0.5)
    averaged = method.eval().alignment.mask_free(batch)
    assert not torch.allclose(averaged, live, atol=1e-2)
    method.alignment.load_state_dict(kept)
    assert torch.equal(method.train().alignment.mask_free(batch), live)


def test_the_semi_stage_trains_the_fusion_and_leaves_the_space_of_the_pool_alone():
    left = untrained(filled(), "semi", 2)
    assert sorted(left) == SPACE


def test_the_warm_up_knows_no_references():
    method = cers()
    train(method, make_semi(), 4, stages=("warm-up",))
    assert not method.pool.filled.any()
    prediction = method.predict(query())
    assert prediction.evidence is None
    assert torch.equal(prediction.probability, branches(method, query(), use_evidence=False)[0])


def test_the_pool_holds_the_encoders_view_of_each_case_and_its_mask_informed_rationale():
    method, batch = filled(), make_batch(LABELLED, masked=True)
    with torch.no_grad():
        features = method.encoder(batch.images)[-1].mean(dim=(2, 3))
        informed = method.alignment.cot_projection(batch.mask_cot)
    assert torch.allclose(method.pool.image, F.normalize(features, dim=1), atol=1e-6)
    assert torch.allclose(method.pool.cot[:3].float(), F.normalize(informed, dim=1)[:3], atol=1e-3)
    assert method.pool.cot_known.tolist() == method.pool.report_known.tolist() == [True, True, True, False]


def test_where_no_rationale_saw_the_mask_the_other_stands_in():
    method, batch = cers(), make_batch(LABELLED, masked=True)
    batch = replace(batch, mask_cot_known=torch.tensor([True, False, False, False]))
    method.start_stage("semi", [batch])
    with torch.no_grad():
        expected = method.alignment.cot_projection(torch.cat([batch.mask_cot[:1], batch.cot[1:]]))
    assert torch.allclose(method.pool.cot[:3].float(), F.normalize(expected, dim=1)[:3], atol=1e-3)
    assert method.pool.cot_known.tolist() == [True, True, True, False]


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_each_semi_step_moves_the_pool_after_the_encoder(momentum):
    method, batch = filled({"pool_momentum": momentum}).train(), make_semi(labelled=("l1", "l2"))
    before = copy.deepcopy(method.pool)
    with torch.no_grad():
        images = 1.5 * batch.labelled.images
        seen = method.encoder(images)[-1]
    batch = SemiBatch(replace(batch.labelled, images=images), batch.unlabelled)
    step(method, batch).loss.backward()
    assert torch.equal(method.pool.image, before.image)
    method.after_step()
    before.update(batch.labelled.ids, seen, momentum)
    assert torch.allclose(method.pool.image, before.image, atol=1e-6)
    assert torch.allclose(method.pool.tokens.float(), before.tokens.float(), atol=1e-2)
    once = method.pool.image.clone()
    method.after_step()
    assert torch.equal(method.pool.image, once)


def test_alignment_pairs_images_with_the_rationales_that_saw_their_masks():
    method, batch = cers(), make_batch(LABELLED, masked=True)
    costs = {}
    for what in ("mask_cot", "cot"):
        others = replace(batch, **{what: noise("others", 4, COT)})
        costs[what] = step(method.eval(), SemiBatch(others), "warm-up").logs["alignment"]
    now = step(method, SemiBatch(batch), "warm-up")
    assert torch.allclose(now.loss, now.logs["segmentation"] + 0.5 * now.logs["alignment"])
    assert torch.equal(costs["cot"], now.logs["alignment"])
    assert not torch.allclose(costs["mask_cot"], now.logs["alignment"])


def test_queries_use_the_mask_free_rationale_and_entries_the_other():
    ids = tuple(f"l{i}" for i in range(9))
    settings = {"retrieval": "cot", "k": 3}
    method, labelled = filled(settings, labelled=ids), make_batch(ids, masked=True)
    expected = found_ids(method.predict(labelled).evidence)
    other = noise("others", 9, COT)
    assert found_ids(method.predict(replace(labelled, mask_cot=other)).evidence) == expected
    assert found_ids(method.predict(replace(labelled, cot=other)).evidence) != expected

    for field, changes in (("mask_cot", True), ("cot", False)):
        again = cers(settings, labelled=ids)
        known = torch.ones(9, dtype=torch.bool)
        again.start_stage("semi", [replace(labelled, **{field: other}, mask_cot_known=known)])
        assert torch.equal(again.pool.cot[:3], method.pool.cot[:3]) is not changes


@pytest.mark.parametrize("sizes", [False, True])
def test_every_strategy_can_be_compared_and_the_declared_one_is_what_predictions_use(trained, sizes):
    method = filled({"k": 2, "reference_sizes": True}) if sizes else trained
    compared = method.compare_retrieval(query())
    assert set(compared) == set(get_args(Strategy)) - {"none"}
    used = method.predict(query()).evidence
    assert (used.at_least is not None) is sizes
    for field in fields(Evidence):
        if field.name not in ("pool_ids", "attention"):
            now, expected = (getattr(e, field.name) for e in (compared["image+cot"], used))
            assert now is expected or torch.equal(now.nan_to_num(9), expected.nan_to_num(9)), field.name
    assert len({tuple(map(tuple, found_ids(e))) for e in compared.values()}) > 1


def test_a_run_can_be_asked_for_other_references_and_for_none(trained):
    method = copy.deepcopy(trained)
    compared = method.compare_retrieval(query())
    for strategy in ("image", "random", "cot"):
        method.retrieve_by(strategy)
        assert torch.equal(method.predict(query()).evidence.index, compared[strategy].index)
    method.retrieve_by("none")
    assert method.predict(query()).evidence is None
    with pytest.raises(CersError, match="no retrieval strategy 'imag' in this run; did you mean 'image'"):
        method.retrieve_by("imag")


def test_attention_shares_sum_to_one_over_the_references_there_are():
    evidence = filled({"k": 5}).predict(make_batch(("l0", "q0"), masked=False)).evidence
    assert evidence.valid.tolist() == [[True] * 3 + [False] * 2, [True] * 4 + [False]]
    assert torch.allclose(evidence.attention.sum(dim=1), torch.ones(2), atol=1e-5)
    assert not evidence.attention[~evidence.valid].any()


def test_without_retrieval_there_is_no_evidence():
    method = filled({"retrieval": "none"})
    assert method.fusion is None
    assert method.predict(query()).evidence is None
    assert method.compare_retrieval(query()) == {}


def test_evidence_can_be_switched_off(trained):
    retrieval, base = branches(trained, query())
    without = trained.predict(query(), use_evidence=False)
    assert without.evidence is None
    assert torch.equal(without.branches["base"], base)
    assert not torch.equal(without.branches["retrieval"], retrieval)


@pytest.mark.parametrize("output", ["retrieval", "base", "both"])
def test_the_declared_branch_is_the_prediction(output):
    prediction = filled({"output": output}).predict(query())
    assert torch.equal(prediction.probability, prediction.branches[output])
    if output == "both":
        odds = [prediction.branches[name].logit() for name in ("retrieval", "base")]
        assert torch.allclose(prediction.probability.logit(), sum(odds) / 2, atol=1e-4)
    assert not torch.equal(prediction.branches["retrieval"], prediction.branches["base"])


@pytest.mark.parametrize(
    "settings",
    [{"decoder": "unet"}, {"decoder": "swin-unet"}, {"coordinate_gate": False}, {"multi_scale": False}],
    ids=lambda s: "-".join(map(str, *s.items())),
)
def test_ablations_train(settings):
    method = cers(settings)
    assert all(torch.tensor(train(method, make_semi(), 2)).isfinite())
    assert method.predict(query()).probability.isfinite().all()


@pytest.mark.parametrize("retrieval", get_args(Strategy))
@pytest.mark.parametrize("report", [True, False])
def test_whoever_can_see_a_text_says_so(retrieval, report):
    """With alignment off. `reads_text` keeps images unmirrored whose texts name a side."""
    ids = tuple(f"l{i}" for i in range(8))
    method = filled({"retrieval": retrieval, "report": report, "alignment": 0, "k": 2, "candidates": 4}, labelled=ids)
    for name, parameter in method.named_parameters():
        if name.endswith(("gamma", "fusion.attention.out_proj.weight")):  # these start closed
            nn.init.constant_(parameter, 0.5)
    changed = not torch.equal(
        method.predict(with_other_texts(query())).probability, method.predict(query()).probability
    )
    assert changed == method.reads_text


def test_alignment_alone_reads_rationales():
    settings = {"retrieval": "image", "report": False}
    assert cers(settings).reads_text
    assert not cers(settings | {"alignment": 0}).reads_text
    assert not cers(settings, cot=False).reads_text
    assert not cers({"retrieval": "image+report"}, report=False, cot=False).reads_text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrival": "image"}, "unknown setting 'retrival'; did you mean 'retrieval'?"),
        ({"retrieval": "image+cott"}, "'image+cot'"),
        ({"k": 0}, "greater than or equal to 1 (got 0)"),
        ({"warmup_share": 1.0}, "less than 1"),
        ({"temperature": 0}, "greater than 0"),
        (
            {"temperature": 0.5, "strong_views": True},
            "does nothing unless method.settings.strong_views=false (got 0.5)",
        ),
        ({"cutmix": 0.0}, "cutmix: does nothing unless method.settings.strong_views=true"),
        ({"lesson_dice": 1.0}, "lesson_dice: does nothing unless method.settings.strong_views=true"),
        ({"pointing": 1.0}, "does nothing unless method.settings.reference_masks=true"),
    ],
)
def test_a_mistaken_setting_is_one_line(settings, message):
    with pytest.raises(CersError) as raised:
        method_settings("cers", settings)
    assert message in str(raised.value)
    assert "method.settings of 'cers'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_the_norm_an_unread_report_leaves_the_answer_as_it_is():
    """The gate is shut at the start, so that only the norm can change anything."""
    silent, plain, normed = (
        filled(settings) for settings in ({"report": False}, {"report_norm": False}, {"report_norm": True})
    )
    for method in (plain, normed):
        method.load_state_dict(silent.state_dict(), strict=False)
    said = silent.predict(query()).probability
    assert torch.allclose(plain.predict(query()).probability, said, atol=1e-6)
    assert not torch.allclose(normed.predict(query()).probability, said, atol=1e-5)


def test_masks_of_references_reach_the_retrieval_branch_and_no_other():
    method = filled({"reference_masks": True, "retrieval": "image"})
    torch.manual_seed(0)
    for p in method.mask_prior.parameters():
        nn.init.normal_(p)
    retrieval, base = branches(method, query())
    alone, _ = branches(method, query(), use_evidence=False)
    assert not torch.equal(retrieval, alone)
    method.pool.prototypes.copy_(method.pool.prototypes.flip(1))  # what was lesion is background
    swapped, same = branches(method, query())
    assert not torch.allclose(swapped, retrieval, atol=1e-6, rtol=0)
    assert torch.equal(same, base)


def test_references_alone_are_a_branch_that_only_the_pool_decides():
    method = filled({"reference_masks": True, "retrieval": "image"})
    alone = method.predict(query()).branches["references"]
    assert alone.shape == method.predict(query()).probability.shape
    nn.init.normal_(method.retrieval_decoder.head.logit.weight)
    assert torch.equal(method.predict(query()).branches["references"], alone)
    method.pool.prototypes[:, [0, 1]] = method.pool.prototypes[:, [1, 0]]
    method.pool.prototypes[:, 2] = 0
    assert not torch.allclose(method.predict(query()).branches["references"], alone, atol=1e-4)
    assert "references" not in method.predict(query(), use_evidence=False).branches
    assert "references" not in filled({}).predict(query()).branches


@pytest.mark.parametrize("silent", [True, False])
def test_references_answer_for_a_new_class_where_they_contradict_the_decoder(silent):
    method = filled({"reference_masks": True, "retrieval": "random", "k": 1})
    with torch.no_grad():
        logit = method.retrieval_decoder.head.logit
        logit.weight.zero_()
        logit.bias.fill_(-50.0 if silent else 50.0)
    before = method.predict(query())
    assert torch.equal(before.probability, before.branches["retrieval"])
    new = int(before.evidence.index[0, 0])
    method.pool.entries = tuple(
        e._replace(label="new") if row == new else e for row, e in enumerate(method.pool.entries)
    )
    after = method.predict(query())
    coarse, alone = before.branches["references"], after.branches["references"]
    asked = after.evidence.index[:, 0] == new
    assert 0 < asked.sum() < len(asked)
    assert torch.allclose(alone[asked], outline(query().images[asked], coarse[asked].logit()), atol=1e-5)
    assert torch.equal(alone[~asked], coarse[~asked])
    answers = asked & contradicted(before.probability, alone, coarse.logit())
    assert answers.any() or not silent
    assert torch.equal(after.probability[answers], alone[answers])
    assert torch.equal(after.probability[~answers], before.probability[~answers])


def test_references_that_mark_nothing_leave_the_answer_to_the_decoder():
    method = filled({"reference_masks": True, "retrieval": "random", "k": 1})
    method.pool.entries = tuple(e._replace(label="new") for e in method.pool.entries)
    method.pool.prototypes.zero_()
    after = method.predict(query())
    assert torch.equal(after.probability, after.branches["retrieval"])


def test_prototypes_of_the_pool_follow_the_masks_of_the_step():
    method = cers({"reference_masks": True, "pool_momentum": 0.5})
    batch = make_semi()
    method.start_stage("semi", [make_batch(method.pool.ids, masked=True)])
    before = method.pool.prototypes.clone()
    other_view = replace(batch.labelled, images=batch.labelled.images.flip(-1))
    step(method, replace(batch, labelled=other_view))
    method.after_step()
    moved = (method.pool.prototypes != before).flatten(1).any(dim=1)
    assert [id_ for id_, m in zip(method.pool.ids, moved.tolist(), strict=True) if m] == sorted(set(batch.labelled.ids))


def test_pointing_is_learned_from_the_labelled_images_alone():
    settings = {"reference_masks": True, "retrieval": "image", "consistency": 0.0}
    method, silent = filled(settings), filled({**settings, "pointing": 0.0})
    batch = make_semi()
    result, without = step(method, batch), step(silent, batch)
    pointing = float(result.logs["pointing"])
    assert pointing > 0
    assert float(result.loss.detach()) == pytest.approx(float(without.loss.detach()) + 0.5 * pointing, rel=1e-5)
    other = replace(batch, unlabelled=replace(batch.unlabelled, images=batch.unlabelled.images.flip(-1)))
    assert float(step(filled(settings).eval(), other).logs["pointing"]) == pytest.approx(
        float(step(filled(settings).eval(), batch).logs["pointing"]), rel=1e-5
    )


def test_lessons_leave_no_weight_without_gradient_in_bf16():
    def reached(precision: bool) -> set[str]:
        method = filled({"strong_views": True, "reference_masks": True})
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision):
            loss = step(method.train(), make_semi(strong_views=1)).loss
        loss.backward()
        return {name for name, weight in method.named_parameters() if weight.grad is not None}

    assert reached(True) == reached(False)


@pytest.mark.parametrize("dice", [0.0, 0.5])
def test_strong_views_learn_what_the_retrieval_branch_sees_in_weak_ones(dice):
    settings = {"strong_views": True, "cutmix": 0.0, "confidence": 0.6, "consistency": 150.5, "lesson_dice": dice}
    method = filled(settings)
    with torch.no_grad():
        method.retrieval_decoder.head.logit.weight.mul_(50)
        method.retrieval_decoder.head.logit.bias.fill_(0.0)
    batch = make_semi(strong_views=1)
    weak = method.predict(batch.unlabelled).branches["retrieval"]
    sure = ((weak >= 0.6) | (weak <= 0.4)).float()
    assert 0 < sure.mean() < 1
    strong = replace(batch.unlabelled, images=batch.unlabelled.strong[:, 0])
    joined = SemiBatch(batch.labelled, strong).joined()
    n = len(batch.labelled)
    label = (weak > 0.5).float()
    losses = [
        (F.binary_cross_entropy(p[n:], label, reduction="none") * sure).mean()
        + dice * two_class_dice(p[n:].logit(), label)
        for p in branches(method, joined)
    ]
    result = step(method, batch)
    assert float(result.logs["consistency"]) == pytest.approx(float(sum(losses)), rel=1e-3)
    # The weight of Eq. 6, which depends on the size of the images under `paper`, is not theirs.
    assert float(result.loss.detach()) == pytest.approx(float(result.logs["segmentation"] + sum(losses)), rel=1e-3)


def test_no_gradient_reaches_the_lesson():
    method = filled({"strong_views": True})
    lesson = method._lesson(make_semi(strong_views=1).unlabelled)
    assert not any(x.requires_grad for x in (lesson.images, lesson.label, lesson.sure))


def silent_and_sized(**settings: Any) -> CERS:
    """Sizes are known, and helped on validation images; the decoder outlines nothing."""
    method = filled({"reference_sizes": True, "retrieval": "image+report", "k": 2, **settings})
    method.size_gain.fill_(0.01)
    method.retrieval_decoder.head.logit.bias.data.fill_(-20.0)
    return method


def outlined_share(probability: Tensor) -> Tensor:
    return (probability > 0.5).flatten(1).float().mean(dim=1)


def test_a_lesion_is_as_large_as_the_smallest_of_its_references():
    method = silent_and_sized()
    masks = make_batch(method.pool.ids, masked=True).required_masks
    assert torch.allclose(method.pool.area, masks.mean(dim=(1, 2, 3)))
    found = method.predict(query())
    smallest = method.pool.area[found.evidence.index].amin(dim=1)
    assert not outlined_share(found.branches["retrieval"]).any()
    assert torch.equal(found.evidence.at_least[:3], smallest[:3])
    assert (outlined_share(found.probability)[:3] > 0).all()
    assert (smallest > 0).all()
    assert torch.equal(found.probability[:3], grown(found.branches["retrieval"].logit(), smallest)[:3].sigmoid())
    assert found.evidence.at_least[3] == 0  # of which nothing is written
    assert torch.equal(found.probability[3], found.branches["retrieval"][3])


@pytest.mark.parametrize("gains", [(0.1, -0.05, 0.0, -0.1), (-0.1, 0.05, 0.1), (0.0, 0.1)], ids=str)
def test_sizes_answer_where_validation_images_were_the_better_for_them(gains):
    method = silent_and_sized()
    method.start_stage("semi", ())  # what was seen in another stage does not count
    for done, gain in enumerate(gains, start=1):
        answer = "sized" if sum(gains[:done]) > 0 else "retrieval"
        branches = {"retrieval": 0.6, "base": 0.9, "sized": 0.6 + gain}
        assert method.after_validation(0.1, branches) == branches[answer]
        found = method.predict(query())
        assert torch.equal(found.probability, found.branches[answer])
        assert not torch.equal(found.branches["sized"], found.branches["retrieval"])


def test_without_sizes_validation_decides_nothing():
    assert filled().after_validation(0.1, {"retrieval": 0.1, "base": 0.9}) == 0.1


@pytest.mark.parametrize("what", ["no evidence", "no words", "no lesion", "not asked for", "not validated"])
def test_without_a_size_to_go_by_the_answer_is_the_decoders(what):
    method = silent_and_sized(**({"reference_sizes": False} if what == "not asked for" else {}))
    if what == "not validated":
        method.size_gain.zero_()
    batch = query()
    if what == "no words":
        unknown = torch.zeros_like(batch.report_known)
        batch = replace(batch, report_known=unknown, cot_known=unknown)
    elif what == "no lesion":
        method.pool.area.zero_()
    found = method.predict(batch, use_evidence=what != "no evidence")
    assert torch.equal(found.probability, found.branches["retrieval"])


@pytest.mark.parametrize(
    "settings", [{"reference_masks": True}, {"reference_sizes": True}, {"strong_views": True}], ids=str
)
def test_additions_train_without_retrieval_and_without_unlabelled_images(settings):
    method = cers({**settings, "retrieval": "none"})
    train(method, make_semi(unlabelled=(), strong_views=method.strong_views), 4)
    assert method.eval().predict(query()).probability.isfinite().all()
