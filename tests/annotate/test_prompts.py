from pathlib import Path

import pytest

from cers.annotate.prompts import load_prompts
from cers.annotate.settings import AnnotateConfig, load_annotate_config
from cers.errors import CersError

GOLDEN = Path(__file__).parent / "golden_prompts"
BRAIN = AnnotateConfig(modality="T1-weighted MR image", anatomy="brain", target="tumour")


@pytest.mark.parametrize(
    ("name", "role", "config", "report", "marked"),
    [
        ("labelled_fill", "labelled", BRAIN, "A glioma\nof moderate size.", True),
        ("labelled_contour", "labelled", BRAIN.model_copy(update={"overlay": "contour"}), None, True),
        ("labelled_negative", "labelled", BRAIN, None, False),
        ("unlabelled", "unlabelled", BRAIN, "A glioma of moderate size.", False),
        ("unlabelled_bare", "unlabelled", AnnotateConfig(redact=True), None, False),
    ],
)
def test_prompts_are_as_agreed(name: str, role: str, config: AnnotateConfig, report: str | None, marked: bool) -> None:
    text = load_prompts(config)[role].render(config, report, marked=marked)  # type: ignore[index]
    assert text + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_each_prompt_says_what_its_picture_shows() -> None:
    prompts = load_prompts(BRAIN)
    with_mask = prompts["labelled"].render(BRAIN, None, marked=True)
    without = prompts["unlabelled"].render(BRAIN, None, marked=False)
    assert "translucent red overlay" in with_mask
    assert "red" not in without.replace("hundred", "").split()
    assert "Nothing is marked" in without
    for text in (with_mask, without):
        assert "128 tokens" in text
        assert "no coordinates" in text
        assert "hard to draw" in text
        assert all(aspect in text for aspect in ("texture", "boundary", "context", "summary"))


def test_the_version_follows_what_shapes_a_request() -> None:
    base = {role: prompt.version for role, prompt in load_prompts(BRAIN).items()}
    assert all(version.startswith("v1-") for version in base.values())

    def versions(**changes: object) -> dict[str, str]:
        return {r: p.version for r, p in load_prompts(BRAIN.model_copy(update=changes)).items()}

    assert versions(concurrency=3, timeout=9.0) == base
    assert not set(versions(target="lesion").values()) & set(base.values())
    contour = versions(overlay="contour")
    assert contour["unlabelled"] == base["unlabelled"]
    assert contour["labelled"] != base["labelled"]


def test_own_prompts_are_versions_of_their_content(tmp_path: Path) -> None:
    for role in ("labelled", "unlabelled"):
        (tmp_path / f"{role}.md").write_text(f"{role} {{{{ target }}}}: {{{{ report }}}}", encoding="utf-8")
    own = BRAIN.model_copy(update={"prompts": tmp_path})
    first = load_prompts(own)
    assert first["labelled"].render(own, "r", marked=True) == "labelled tumour: r"
    assert first["labelled"].version.startswith("own-")
    (tmp_path / "labelled.md").write_text("other", encoding="utf-8")
    second = load_prompts(own)
    assert second["labelled"].version != first["labelled"].version
    assert second["unlabelled"].version == first["unlabelled"].version


@pytest.mark.parametrize("template", ["{{ modlity }}", "{% if %}", None])
def test_a_broken_prompt_is_one_line(tmp_path: Path, template: str | None) -> None:
    for role in ("labelled", "unlabelled"):
        if template is not None:
            (tmp_path / f"{role}.md").write_text(template, encoding="utf-8")
    with pytest.raises(CersError, match="prompt"):
        load_prompts(BRAIN.model_copy(update={"prompts": tmp_path}))


def test_settings_come_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("model: qwen-vl\nmask: {threshold: 128}\n", encoding="utf-8")
    config = load_annotate_config(path, ["anatomy=brain", "extra={seed: 1}", "mask.threshold=5"])
    assert (config.model, config.anatomy, config.extra, config.mask.threshold) == ("qwen-vl", "brain", {"seed": 1}, 5)
    config = load_annotate_config(path, ["model=4.10", "prompts=2024-13-45", "prices=00123", "extra={day: 2024-13-45}"])
    assert (config.model, config.prompts, config.prices) == ("4.10", Path("2024-13-45"), Path("00123"))
    assert config.extra == {"day": "2024-13-45"}
    for wrong, says in (
        (["modell=x"], "did you mean 'model'"),
        (["model"], "key=value"),
        (["concurrency=0"], "concurrency"),
        (["extra={stream: true}"], "stream"),
        (["extra={n: 5}"], "extra"),
    ):
        with pytest.raises(CersError, match=says):
            load_annotate_config(path, wrong)
    with pytest.raises(CersError, match="cannot be read"):
        load_annotate_config(tmp_path / "no.yaml")
    path.write_text("concurrency: 2024-13-45", encoding="utf-8")
    with pytest.raises(CersError, match="concurrency"):
        load_annotate_config(path)
