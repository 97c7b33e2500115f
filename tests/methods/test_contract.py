"""What holds for every registered method. A new method is tested here without a change."""

from dataclasses import fields, replace

import pytest
import torch
from tiny_runs import LABELLED, begin, dice, make, make_batch, make_semi, train, with_other_texts
from torch import Tensor, nn

from cers.data.case import Batch, SemiBatch
from cers.ema import Teacher
from cers.errors import CersError
from cers.methods.base import Method, Progress, StepResult
from cers.methods.registry import METHODS, create_method, method_settings


@pytest.fixture(params=list(METHODS), scope="module")
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(name) -> Method:
    """A few steps. Not to be changed: take a deepcopy."""
    method = make(name)
    train(method, make_semi(strong_views=method.strong_views), 4)
    return method


def query(**options) -> Batch:
    return make_batch(("q0", "q1", "q2", "q3"), masked=False, **options)


def snapshot(method: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in method.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def results(method: Method, batch: SemiBatch):
    """Every result of the first step of every stage."""
    for stage in method.stages():
        begin(method, stage.name, batch)
        seen = batch if stage.unlabelled else SemiBatch(batch.labelled)
        for result in method.steps(seen, Progress(stage.name, 0, 10)):
            yield result
            method.after_step()


def teachers(method: Method) -> list[Teacher]:
    return [module for module in method.modules() if isinstance(module, Teacher)]


def assert_steps_are_finite(method: Method, batch: SemiBatch) -> None:
    count = 0
    for result in results(method, batch):
        method.zero_grad(set_to_none=True)
        assert result.loss.shape == ()
        assert result.loss.isfinite()
        result.loss.backward()
        gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
        assert gradients
        assert all(g.isfinite().all() for g in gradients.values()), [n for n, g in gradients.items() if g.isnan().any()]
        for what, value in result.logs.items():
            assert value.isfinite(), what
            assert not value.requires_grad, what
        count += 1
    assert count == len(method.stages()) * method.optimiser_steps


@pytest.mark.parametrize("report", [True, False], ids=["reports", "no reports"])
@pytest.mark.parametrize("cot", [True, False], ids=["rationales", "no rationales"])
def test_steps_and_predictions_with_and_without_texts(name, report, cot):
    method = make(name, report=report, cot=cot)
    batch = make_semi(report=report, cot=cot, strong_views=method.strong_views)
    assert_steps_are_finite(method, batch)
    probability = method.eval().predict(query(report=report, cot=cot)).probability
    assert probability.isfinite().all()


def test_steps_where_no_case_has_the_texts_that_the_run_knows(name):
    def silent(batch: Batch) -> Batch:
        found = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        texts = {k: v for k, v in found.items() if isinstance(v, Tensor) and k not in ("images", "masks", "strong")}
        return replace(batch, **{k: torch.full_like(v, "padding" in k) for k, v in texts.items()})

    method = make(name)
    batch = make_semi(strong_views=method.strong_views)
    assert_steps_are_finite(method, SemiBatch(silent(batch.labelled), silent(batch.unlabelled)))
    assert method.eval().predict(silent(query())).probability.isfinite().all()


def test_steps_in_bf16(name):
    method = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = make_semi(strong_views=method.strong_views)
        assert_steps_are_finite(method, batch)
        prediction = method.eval().predict(query())
    assert prediction.probability.dtype == torch.float32
    assert prediction.probability.isfinite().all()


def test_empty_masks(name):
    method = make(name)
    batch = make_semi(strong_views=method.strong_views)
    empty = replace(batch.labelled, masks=torch.zeros_like(batch.labelled.required_masks))
    assert_steps_are_finite(method, replace(batch, labelled=empty))


@pytest.mark.parametrize("unlabelled", [("u0",), ()], ids=["one and one", "one alone"])
def test_batch_of_one_at_the_smallest_size(name, unlabelled):
    """Every BatchNorm of ours still sees several values a channel at 32 px."""
    method = make(name)
    assert_steps_are_finite(method, make_semi(("l0",), unlabelled, strong_views=method.strong_views))
    assert method.eval().predict(make_batch(("q0",), masked=False, size=(32, 32))).probability.shape == (1, 1, 32, 32)


def test_odd_sizes(name):
    method = make(name)
    size = (50, 71)
    assert_steps_are_finite(method, make_semi(size=size, strong_views=method.strong_views))
    prediction = method.eval().predict(query(size=size))
    assert all(b.shape == (4, 1, *size) for b in (prediction.probability, *prediction.branches.values()))


def test_what_should_learn_learns_and_nothing_else_gets_a_gradient(name):
    method = make(name)
    before = snapshot(method)
    batch = make_semi(strong_views=method.strong_views)
    reached: set[str] = set()
    for result in results(method, batch):
        method.zero_grad(set_to_none=True)
        result.loss.backward()
        reached |= {n for n, p in method.named_parameters() if p.grad is not None}
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    assert reached == trainable
    assert not any(b.requires_grad for b in method.buffers())
    inputs = [getattr(b, f.name) for b in (batch.labelled, batch.unlabelled) for f in fields(Batch)]
    assert not any(value.requires_grad for value in inputs if isinstance(value, Tensor))

    train(method, batch, 2)
    moved = {n.split(".")[0] for n in trainable if not torch.equal(method.state_dict()[n], before[n])}
    assert moved == {n.split(".")[0] for n in trainable}


def test_teachers_follow_by_averaging_alone(name):
    """No gradient, no optimiser, no statistics of their own."""
    method = make(name)
    batch = make_semi(strong_views=method.strong_views)
    for result in results(method, batch):
        assert not any(p.requires_grad for t in teachers(method) for p in t.parameters())
        assert not any(m.training for t in teachers(method) for m in t.modules())
        before = [snapshot(teacher) for teacher in teachers(method)]
        result.loss.backward()
        assert all(same(snapshot(t), b) for t, b in zip(teachers(method), before, strict=True))
        method.zero_grad(set_to_none=True)


def test_teachers_are_the_student_after_the_first_step_of_all_and_follow_it_in_every_stage(name):
    """That of two students lies between them."""
    method = make(name)
    assert bool(teachers(method)) == ("teacher" in method.networks)
    batch = make_semi(strong_views=method.strong_views)
    stage = method.stages()[0].name
    begin(method, stage, batch)
    descend(method, next(method.steps(batch, Progress(stage, 0, 10))))
    for teacher in teachers(method):
        students = [module for module in method.children() if type(module) is type(teacher.network)]
        for mine, *theirs in zip(*(list(snapshot(m).values()) for m in (teacher.network, *students)), strict=True):
            low, high = torch.stack(theirs).aminmax(dim=0)
            assert ((low <= mine) & (mine <= high)).all()
    for stage in method.stages():
        begin(method, stage.name, batch)
        before = [snapshot(teacher.network) for teacher in teachers(method)]
        one_step(method, batch, Progress(stage.name, 9, 10))
        for teacher, old in zip(teachers(method), before, strict=True):
            assert any(not torch.equal(p, old[n]) for n, p in teacher.network.named_parameters())


def test_four_images_are_learned_by_heart(name):
    method = make(name, size=48)
    batch = make_semi(size=(48, 48), strong_views=method.strong_views)
    train(method, batch, 60)
    prediction = method.predict(batch.labelled)
    scores = {branch: dice(p, batch.labelled.required_masks) for branch, p in prediction.branches.items()}
    assert min(scores.values()) > 0.8, scores
    assert dice(prediction.probability, batch.labelled.required_masks) > 0.8


def test_predictions_are_probabilities_of_the_images_size(trained):
    prediction = trained.predict(query())
    for branch in (prediction.probability, *prediction.branches.values()):
        assert branch.shape == (4, 1, 32, 32)
        assert ((branch >= 0) & (branch <= 1)).all()
        assert not branch.requires_grad
        assert branch.std() > 0
    assert any(torch.equal(prediction.probability, b) for b in prediction.branches.values())


def test_predictions_repeat_and_leave_no_trace(trained):
    before = snapshot(trained)
    first, second = trained.predict(query()), trained.predict(query())
    assert all(torch.equal(p, second.branches[branch]) for branch, p in first.branches.items())
    trained.compare_retrieval(query())
    assert same(snapshot(trained), before)


def test_a_case_is_predicted_the_same_in_any_company(trained):
    whole, alone = trained.predict(query()), make_batch(("q2",), masked=False)
    assert torch.allclose(trained.predict(alone).probability[0], whole.probability[2], atol=1e-5)


def test_state_is_complete(name, trained):
    """A method made from another seed predicts the same once it has the state."""
    other = make(name, seed=1)
    assert not torch.equal(other.eval().predict(query()).probability, trained.predict(query()).probability)
    other.load_state_dict(snapshot(trained))
    found, expected = other.predict(query()), trained.predict(query())
    assert all(torch.equal(p, expected.branches[branch]) for branch, p in found.branches.items())


def test_training_goes_on_from_the_state_inside_every_stage(name):
    """The next step costs and changes the same whether the method was kept or read back."""
    kept = make(name)
    batch = make_semi(strong_views=kept.strong_views)
    for stage in kept.stages():
        begin(kept, stage.name, batch)
        one_step(kept, batch, Progress(stage.name, 4, 10))
        read = make(name, seed=1)
        read.load_state_dict(snapshot(kept))
        for step in (5, 6):  # the first reaches what only after_step changed
            losses = [one_step(method, batch, Progress(stage.name, step, 10)) for method in (kept, read)]
            assert losses[0] == losses[1]
            assert same(snapshot(kept), snapshot(read))


def one_step(method: Method, batch: SemiBatch, progress: Progress) -> list[float]:
    """One batch as the loop takes it, by plain gradient descent; the losses."""
    method.train()
    torch.manual_seed(progress.step)
    losses = []
    for result in method.steps(batch, progress):
        descend(method, result)
        losses.append(float(result.loss.detach()))
    return losses


def descend(method: Method, result: StepResult) -> None:
    method.zero_grad(set_to_none=True)
    result.loss.backward()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    method.after_step()


def test_chance_is_a_function_of_the_step(name):
    """Two runs of one method on one batch agree bit for bit once torch's generator is seeded."""
    first, second = make(name), make(name)
    batch = make_semi(strong_views=first.strong_views)
    for stage in first.stages():
        for method in (first, second):
            torch.manual_seed(1)
            begin(method, stage.name, batch)
            one_step(method, batch, Progress(stage.name, 9, 10))
            torch.rand(3)
        assert same(snapshot(first), snapshot(second))


def test_the_start_is_a_function_of_the_seed(name):
    first = snapshot(make(name))
    torch.rand(7)
    assert same(snapshot(make(name)), first)
    assert not same(snapshot(make(name, seed=1)), first)


def test_texts_matter_to_those_that_read_them_and_to_no_other(trained):
    """What a method says it reads decides whether images whose texts name a side may be mirrored."""
    first, second = trained.predict(query()), trained.predict(with_other_texts(query()))
    assert torch.equal(first.probability, second.probability) == (not trained.reads_text)


def test_who_reads_no_text_trains_without_it(name):
    method, other = make(name), make(name)
    if method.reads_text:
        return
    batch = make_semi(strong_views=method.strong_views)
    poisoned = SemiBatch(with_nan_texts(batch.labelled), with_nan_texts(batch.unlabelled))
    for stage in method.stages():
        progress = Progress(stage.name, 9, 10)
        begin(method, stage.name, batch)
        begin(other, stage.name, poisoned)
        assert one_step(method, batch, progress) == one_step(other, poisoned, progress)
    assert same(snapshot(method), snapshot(other))


def with_nan_texts(batch: Batch) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(Batch) if f.name not in ("images", "masks", "strong")}
    texts = {k: v for k, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    assert {"report_tokens", "report", "cot", "mask_cot"} <= texts.keys()
    return replace(batch, **{k: torch.full_like(v, torch.nan) for k, v in texts.items()})


class Untouchable(Batch):
    def __getattribute__(self, name):
        raise AssertionError(f"the unlabelled batch was touched at '{name}'")


def test_stages_without_unlabelled_images_never_touch_them(name):
    method = make(name)
    batch = make_semi(strong_views=method.strong_views)
    forbidden = Untouchable(batch.unlabelled.ids, batch.unlabelled.images)
    with pytest.raises(AssertionError, match="images"):
        _ = forbidden.images
    supervised = [stage for stage in method.stages() if not stage.unlabelled]
    assert supervised == list(method.stages()) or name != "supervised"
    for stage in supervised:
        method.start_stage(stage.name, [replace(batch.labelled, strong=None)])
        method.train()
        for result in method.steps(SemiBatch(batch.labelled, forbidden), Progress(stage.name, 0, 10)):
            result.loss.backward()
            method.after_step()


def test_stages_share_the_whole_budget(name):
    stages = make(name).stages()
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert all(stage.share > 0 and stage.lr_factor > 0 for stage in stages)
    assert len({stage.name for stage in stages}) == len(stages)


def test_pools_hold_the_labelled_cases_only(trained):
    if trained.pool is not None:
        assert trained.pool.ids == LABELLED
        assert trained.pool.filled.all()


def test_unknown_methods_and_settings_are_named_in_one_line(name):
    setup = make(name)
    for call, message in (
        (lambda: create_method(name[:-1] + "x", {}, setup), f"no method '{name[:-1]}x'; did you mean '{name}'?"),
        (lambda: method_settings(name, {"no_such": 1}), "unknown setting 'no_such'"),
    ):
        with pytest.raises(CersError) as raised:
            call()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
